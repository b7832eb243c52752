"""Whole systems: simulators in images, the package on machines with systemd, disks that boot."""
