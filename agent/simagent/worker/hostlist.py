"""Which hosts of a cluster are used, and in which order: those that the operator named, or all."""

from collections.abc import Iterable
from dataclasses import dataclass

from simagent.domain.cluster import Member
from simagent.worker.journal import Place


class HostlistError(ValueError):
    """A list of hosts cannot be read; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A host that the operator named, by its name or its address; ``slots`` where that was set."""

    name: str
    slots: int | None = None

    def means(self, place: Place) -> bool:
        """Tell whether it is this place."""
        return self.name in (place.name, place.address)

    def means_member(self, member: Member) -> bool:
        """Tell whether it is the host of this member."""
        return self.name in (member.host, member.address)


def read_hostlist(text: str) -> tuple[Wanted, ...]:
    """Read a file of hosts: NAME or ``NAME slots=N`` in a line, ``#`` begins a comment.

    Raises `HostlistError`.
    """
    found: list[Wanted] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        name, *options = words
        slots = None
        for option in options:
            key, _, value = option.partition("=")
            if key != "slots" or not value.isdecimal() or int(value) < 1:
                raise HostlistError(f"line {number}: {option!r} is not understood: use slots=N")
            slots = int(value)
        if any(wanted.name == name for wanted in found):
            raise HostlistError(f"line {number}: two hosts are named {name}: name each once")
        found.append(Wanted(name, slots))
    return tuple(found)


def arrange(own: Place, members: Iterable[Member], wanted: tuple[Wanted, ...]) -> tuple[Place, ...]:
    """Put this host first, then those of the members that are wanted, in that order; else all."""
    there = [place_of(member) for member in members]
    if not wanted:
        return (own, *there)
    mine = next((each.slots for each in wanted if each.means(own)), None)
    chosen = [
        place.with_(slots=each.slots or place.slots)
        for each in wanted
        if not each.means(own)
        for place in there
        if each.means(place)
    ]
    return (own.with_(slots=mine or own.slots), *chosen)


def place_of(member: Member) -> Place:
    """Give the host of a member as an attempt knows it."""
    return Place(
        name=member.host,
        address=member.address,
        slots=member.slots,
        agent=member.agent,
        interface=member.interface,
    )
