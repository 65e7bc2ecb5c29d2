"""Patterns of a .dockerignore file."""

import pytest

from farcall.errors import InvalidError
from farcall.spec.patterns import Patterns, ignore_file


@pytest.mark.parametrize(
    ("pattern", "matched", "others"),
    [
        ("*.pyc", ["a.pyc", ".pyc"], ["deep/a.pyc", "a.py"]),
        ("**/*.pyc", ["a.pyc", "deep/a.pyc", "de/ep/a.pyc"], ["a.py"]),
        ("build", ["build", "build/a", "build/a/b"], ["src/build", "builds"]),
        ("/build/", ["build", "build/a"], ["src/build"]),
        ("./build", ["build"], []),
        ("**/build", ["build", "src/build", "src/build/x"], ["rebuild"]),
        ("src/**/test", ["src/test", "src/a/b/test"], ["src/tests", "test"]),
        ("src/**", ["src/a", "src/a/b"], ["src"]),
        ("**", ["a", "a/b"], []),
        ("*", ["a", "a/b"], []),
        ("*/temp*", ["a/temp", "a/temporary.txt"], ["temp", "a/b/temp"]),
        ("temp?", ["tempa"], ["temp", "temp/"]),
        ("[a-c].txt", ["a.txt"], ["d.txt"]),
        ("[^a].txt", ["b.txt"], ["a.txt"]),
        (r"\[a].txt", ["[a].txt"], ["a.txt"]),
        (r"\!a", ["!a"], ["a"]),
        ("a.txt", ["a.txt"], ["axtxt"]),
        ("ä ö", ["ä ö"], []),
        (".", [], ["a"]),
    ],
)
def test_one_pattern(pattern: str, matched: list[str], others: list[str]) -> None:
    patterns = Patterns([pattern])
    assert [path for path in matched if not patterns.match(path)] == []
    assert [path for path in others if patterns.match(path)] == []


def test_the_last_pattern_that_matches_counts() -> None:
    patterns = Patterns(["*.md", "!README*.md", "README-secret.md", "docs", "!docs/a"])
    assert [path for path in ("x.md", "README-secret.md", "docs/b") if not patterns.match(path)] == []
    assert [path for path in ("README.md", "docs/a", "docs/a/b") if patterns.match(path)] == []
    assert patterns.has_exceptions
    assert not Patterns(["a", "b"]).has_exceptions


def test_an_ignore_file() -> None:
    patterns = ignore_file("\ufeff# comment\n\n  spaced  \r\n#also\n! kept\nkept/x\n")
    assert patterns.texts == ("spaced", "! kept", "kept/x")
    assert patterns.match("spaced/a")
    assert not patterns.match("kept/y")


def test_what_is_no_pattern() -> None:
    with pytest.raises(InvalidError, match="is not closed"):
        Patterns(["a[b"])
    with pytest.raises(InvalidError, match="is not a pattern"):
        Patterns(["[z-a]"])
