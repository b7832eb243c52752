"""Which MPI of a host can start the ranks of which MPI in an image.

Tried: Open MPI 4.1 starts ranks of 4.1 and 5.0, but with 5.0's each rank of 4.1 takes itself for
the only one, or fails. The ranks of MPICH speak with any Hydra.
"""


def goes_with(host: str) -> tuple[str, ...]:
    """Give shell patterns of what can be in the image, both such as ``Open MPI 4.1.4``."""
    flavour, _, version = host.rpartition(" ")
    if "MPICH" in (flavour, version):
        return ("MPICH *",)
    major = version.partition(".")[0]
    if not major.isdecimal():
        return (f"{flavour} {version}",)
    if int(major) == 4:
        return (f"{flavour} 4.*", f"{flavour} 5.*")
    return (f"{flavour} {major}.*",)
