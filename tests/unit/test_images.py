"""Image references: what is understood, and what is refused before any engine sees it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simagent.domain.images import ImageKind, ImageRef, parse_image

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("debian", "docker://docker.io/library/debian:latest"),
        ("debian:trixie-slim", "docker://docker.io/library/debian:trixie-slim"),
        ("docker://debian", "docker://docker.io/library/debian:latest"),
        ("inductiva/kutu:lammps_v1", "docker://docker.io/inductiva/kutu:lammps_v1"),
        ("ghcr.io/a/b/c:1.0-x", "docker://ghcr.io/a/b/c:1.0-x"),
        ("localhost/a", "docker://localhost/a:latest"),
        ("127.0.0.1:5000/a__b/c-d:T", "docker://127.0.0.1:5000/a__b/c-d:T"),
        ("[::1]:5000/a", "docker://[::1]:5000/a:latest"),
        (f"h:5000/a@{DIGEST}", f"docker://h:5000/a@{DIGEST}"),
        (f"docker://h:5000/a:1@{DIGEST}", f"docker://h:5000/a@{DIGEST}"),
        ("oci-archive:/a b/c.tar", "oci-archive:/a b/c.tar"),
        ("docker-archive:/c.tar.gz", "docker-archive:/c.tar.gz"),
        ("file:///images/x.sif", "file:///images/x.sif"),
        ("store://images/x/y-1.sif", "store://images/x/y-1.sif"),
    ],
)
def test_what_is_understood(text: str, full: str) -> None:
    ref = parse_image(text)
    assert str(ref) == full
    assert parse_image(full) == ref or (ref.tag and ref.digest)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "1 to 512 printable"),
        ("a" * 513, "1 to 512 printable"),
        ("--privileged -v /:/host x", "no image reference"),
        ("--privileged", "no image reference"),
        ("-v/a:b", "no image reference"),
        ("Debian", "names in lower case"),
        ("a b", "no image reference"),
        ("a:b c", "no tag"),
        ("a:-x", "no tag"),
        ("a@sha256:12", "a digest is"),
        ("-h.x/a", "no host"),
        ("h:port/a", "no host"),
        ("h:0/a", "0 is no port"),
        ("[::1]:65536/a", "65536 is no port"),
        ("docker:///a", "no image reference"),
        ("http://h/a", "unknown scheme http://"),
        ("oci-archive:a.tar", "absolute path"),
        ("oci-archive:/a:/etc", "absolute path"),
        ("docker-archive:/a/../b", "absolute path"),
        ("file://host/x.sif", "absolute path"),
        ("file:///x,y.sif", "absolute path"),
        ("file:///x.img", "ends in .sif"),
        ("store://tasks/x.sif", "store://images/NAME.sif"),
        ("store://images/../x.sif", "store://images/NAME.sif"),
        ("store://images/-x.sif", "store://images/NAME.sif"),
        ("store://images/x", "ends in .sif"),
        ("a\n--privileged", "printable"),
    ],
)
def test_what_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_image(text)


@given(st.text(max_size=40) | st.from_regex(r"[-a-zA-Z0-9:/@. _\n]{1,40}", fullmatch=True))
def test_nothing_that_an_engine_takes_for_an_option_gets_through(text: str) -> None:
    try:
        ref = parse_image(text)
    except ValueError:
        return
    assert isinstance(ref, ImageRef)
    for word in (str(ref), ref.pullable if ref.kind is ImageKind.REGISTRY else ref.path):
        assert not word.startswith("-")
        assert word.isprintable()
        assert "," not in word
