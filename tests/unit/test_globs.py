"""The one glob."""

import pytest

from simagent.transfer.globs import Globs


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("**", "a"),
        ("**", "a/b/c"),
        ("", "a/b"),
        (".", "a/b"),
        ("*.csv", "x.csv"),
        ("**/*.csv", "x.csv"),
        ("**/*.csv", "a/b/x.csv"),
        ("a/**", "a/b/c"),
        ("a/**/c", "a/c"),
        ("a/**/c", "a/b/b/c"),
        ("**/b/**/d/*", "a/b/c/d/d/e"),
        ("run-?/out.[ab]", "run-1/out.b"),
        ("out.[!ab]", "out.c"),
        ("logs", "logs/deep/x"),
        ("logs/", "logs/x"),
        ("*/", "a/b"),
        ("./a/b", "a/b"),
        ("*", ".hidden"),
        ("*.txt", "two\nlines.txt"),
        ("*.dat", "\udcff.dat"),
        ("[x", "[x"),
    ],
)
def test_match(pattern: str, path: str) -> None:
    assert Globs([pattern]).match(path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*.csv", "a/x.csv"),
        ("*", "a/b"),
        ("?", "ab"),
        ("a/*", "a/b/c"),
        ("a/**/c", "a/b"),
        ("logs", "logs2/x"),
        ("logs", "a/logs"),
        ("out.[!ab]", "out.a"),
        ("A", "a"),
        ("a/b", "a"),
        ("**/x/**/y", "x"),
    ],
)
def test_no_match(pattern: str, path: str) -> None:
    assert not Globs([pattern]).match(path)


@pytest.mark.parametrize(
    ("pattern", "folder", "may"),
    [
        ("**", "a", True),
        ("**/x", "a/b", True),
        ("*.csv", "a", False),
        ("a/*.csv", "a", True),
        ("a/*.csv", "a/b", False),
        ("a/**/c", "a", True),
        ("a/**/c", "b", False),
        ("a", "a", True),
        ("a", "a/b/c", True),
        ("a/b/c", "a", True),
        ("*/b", "a", True),
    ],
)
def test_what_may_lie_in_a_folder(pattern: str, folder: str, may: bool) -> None:
    assert Globs([pattern]).match_beneath(folder) is may


def test_no_pattern_matches_nothing() -> None:
    assert not Globs([]).match("a")


def test_no_pattern_takes_exponential_time() -> None:
    # Each of these would take longer than the universe has had if it were tried naively.
    assert not Globs(["*a" * 40 + "b"]).match("a" * 250)
    assert not Globs(["**/a/" * 40 + "b"]).match("/".join(["a"] * 200))
