"""The one glob: matches whole paths relative to a folder.

``*`` and ``?`` stay within one path component, ``**`` as a component stands for any number of
them, ``[abc]`` and ``[!abc]`` for one character. A pattern that ends in ``/``, or whose last
component has no wildcard, also takes everything beneath the folder of that name: ``logs`` and
``logs/`` are ``logs`` and ``logs/**``. Dots at the start of a name are not special.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence

_WILDCARDS = frozenset("*?[")
_Part = Callable[[str], object] | None
"""A test for one component; None is ``**``."""


def _part(text: str) -> _Part:
    if text == "**":
        return None
    # Each star of fnmatch's expressions is atomic: no pattern takes exponential time.
    return re.compile(fnmatch.translate(text)).match


def _compile(pattern: str) -> list[list[_Part]]:
    texts = [text for text in pattern.split("/") if text not in ("", ".")]
    if not texts:
        return [[None]]
    parts = [_part(text) for text in texts]
    if pattern.endswith("/") or not _WILDCARDS & set(texts[-1]):
        return [parts, [*parts, None]]
    return [parts]


def _match(parts: Sequence[_Part], names: Sequence[str]) -> bool:
    """Match components; only the last ``**`` seen is ever widened, so the time is bounded."""
    part = name = 0
    star, resume = -1, 0
    while name < len(names):
        test = parts[part] if part < len(parts) else _never
        if test is None:
            star, resume = part, name
            part += 1
        elif test(names[name]):
            part += 1
            name += 1
        elif star >= 0:
            resume += 1
            part, name = star + 1, resume
        else:
            return False
    return all(test is None for test in parts[part:])


def _leads_on(parts: Sequence[_Part], names: Sequence[str]) -> bool:
    """Tell whether some path that begins with these components, and goes on, matches."""
    at = _with_stars(parts, {0})
    for name in names:
        reached = set()
        for number in at - {len(parts)}:
            test = parts[number]
            if test is None:
                reached.add(number)
            elif test(name):
                reached.add(number + 1)
        at = _with_stars(parts, reached)
    return any(number < len(parts) for number in at)


def _with_stars(parts: Sequence[_Part], at: set[int]) -> set[int]:
    """Add what is reached where a ``**`` stands for no component at all."""
    for number, test in enumerate(parts):
        if number in at and test is None:
            at.add(number + 1)
    return at


def _never(_name: str) -> bool:
    return False


class Globs:
    """A set of patterns."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [parts for pattern in patterns for parts in _compile(pattern)]
        self._all = any(parts == [None] for parts in self._patterns)

    def match(self, path: str) -> bool:
        """Tell whether any pattern matches the path."""
        if self._all:
            return True
        names = path.split("/")
        return any(_match(parts, names) for parts in self._patterns)

    def match_beneath(self, path: str) -> bool:
        """Tell whether any pattern matches something that may lie in the folder of that path."""
        names = path.split("/")
        return any(_leads_on(parts, names) for parts in self._patterns)
