"""What another thread takes away between two looks, played by one thread."""

from typing import Any, TypeVar

T = TypeVar("T")


class Once:
    """An attribute that is there when it is looked at first, and None from then on."""

    def __init__(self, value: object) -> None:
        self._left = [None, value]

    def __get__(self, owner: object, kind: type[object]) -> Any:
        return self._left.pop() if self._left[1:] else None

    def __set__(self, owner: object, value: object) -> None:
        """Keep what is there."""


def with_once(kind: type[T], **attributes: object) -> type[T]:
    """Give a class like another one, whose objects lose these attributes once they were seen."""
    return type(kind.__name__, (kind,), {name: Once(it) for name, it in attributes.items()})
