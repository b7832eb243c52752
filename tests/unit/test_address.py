"""Which address of this machine the other hosts of a cluster are told."""

import errno
import os
import socket
from pathlib import Path

import pytest

from simagent.worker.address import AddressError, own_address, tcp_device


def test_an_interface_is_found_by_its_name_and_by_its_network() -> None:
    assert str(own_address("lo")) == "127.0.0.1/8"
    assert str(own_address("127.0.0.0/8").ip) == "127.0.0.1"
    assert str(own_address("127.3.2.1/8").network) == "127.0.0.0/8"


@pytest.mark.parametrize("interface", ["eth77", "203.0.113.0/24", "2001:db8::/32"])
def test_what_this_machine_is_not_in_is_named_with_what_it_has(interface: str) -> None:
    with pytest.raises(AddressError, match=r"lo 127\.0\.0\.1/8") as caught:
        own_address(interface)
    assert str(caught.value).startswith(
        f"mpi.interface: this machine has no address in {interface}"
    )


def test_without_a_choice_it_is_no_loopback() -> None:
    """Where there is nothing else, that is said."""
    try:
        addresses = [own_address(None)]
    except AddressError:
        addresses = []
    assert not any(found.ip.is_loopback for found in addresses)


def test_an_address_that_cannot_be_told_just_now_is_not_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def short(*_what: object) -> None:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    monkeypatch.setattr(socket, "socket", short)
    with pytest.raises(OSError, match="open files"):
        own_address(None)


def test_a_device_is_named_where_nothing_is_faster_than_tcp(tmp_path: Path) -> None:
    faster = tmp_path / "infiniband"
    assert tcp_device("127.0.0.0/8", faster=faster) == "lo"
    faster.mkdir()
    assert tcp_device("lo", faster=faster) == "lo"
    (faster / "mlx5_0").mkdir()
    assert tcp_device("lo", faster=faster) == ""
