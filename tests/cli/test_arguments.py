import enum
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest

from farcall.cli.arguments import parse, synopsis
from farcall.errors import InvalidError


class Color(enum.Enum):
    RED = "r"
    GREEN = 2


def everything(
    name: str,
    count: int = 3,
    ratio: float = 0.5,
    dry_run: bool = False,
    when: datetime | None = None,
    day: date | None = None,
    mode: Literal["fast", "slow", 3] = "fast",
    note: Optional[str] = None,  # noqa: UP045 - the old form is one that programs use
    out: Path = Path("x"),
    color: Color = Color.RED,
    tags: list[str] = [],  # noqa: B006
    sizes: list[int] | None = None,
    plain="text",  # pyright: ignore
    number=4,  # pyright: ignore
    described: Annotated[int, "how many"] = 1,
) -> None:
    """Does everything."""


def call(function: Callable[..., Any], *words: str) -> dict[str, Any]:
    arguments = parse(function, words, "farcall run f.py")
    return arguments.kwargs


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--name", "a"], {"name": "a"}),
        (["--name=a", "--count", "-4", "--ratio", "1e3"], {"name": "a", "count": -4, "ratio": 1000.0}),
        (["--name", "a", "--dry-run"], {"name": "a", "dry_run": True}),
        (["--name", "a", "--no-dry-run"], {"name": "a", "dry_run": False}),
        (["--name", "a", "--when", "2026-01-02T03:04"], {"name": "a", "when": datetime(2026, 1, 2, 3, 4)}),
        (["--name", "a", "--when", "2026-01-02"], {"name": "a", "when": datetime(2026, 1, 2)}),
        (["--name", "a", "--day", "2026-01-02"], {"name": "a", "day": date(2026, 1, 2)}),
        (["--name", "a", "--mode", "slow"], {"name": "a", "mode": "slow"}),
        (["--name", "a", "--mode", "3"], {"name": "a", "mode": 3}),
        (["--name", "a", "--note", "n"], {"name": "a", "note": "n"}),
        (["--name", "a", "--out", "/tmp/y"], {"name": "a", "out": Path("/tmp/y")}),
        (["--name", "a", "--color", "GREEN"], {"name": "a", "color": Color.GREEN}),
        (["--name", "a", "--color", "2"], {"name": "a", "color": Color.GREEN}),
        (["--name", "a", "--tags", "x", "y", "--tags", "z"], {"name": "a", "tags": ["x", "y", "z"]}),
        (["--name", "a", "--sizes", "1", "2"], {"name": "a", "sizes": [1, 2]}),
        (["--name", "a", "--plain", "p", "--number", "5"], {"name": "a", "plain": "p", "number": 5}),
        (["--name", "a", "--described", "7"], {"name": "a", "described": 7}),
    ],
)
def test_each_type(words: list[str], expected: dict[str, Any]) -> None:
    assert call(everything, *words) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: --name"),
        (["--name", "a", "--count", "x"], "'x' is not of type int"),
        (["--name", "a", "--mode", "medium"], "'medium' is not one of fast, slow, 3"),
        (["--name", "a", "--color", "blue"], "'blue' is not one of RED, GREEN"),
        (["--name", "a", "--when", "soon"], "'soon' is not of type datetime"),
        (["--nmae", "a"], "required: --name"),
        (["--name", "a", "--cuont", "3"], "did you mean '--count'?"),
        (["--name", "a", "--cou", "3"], "did you mean '--count'?"),
        (["a"], "required: --name"),
        (["--name", "a", "b"], "arguments have names, as in --name b"),
    ],
)
def test_what_does_not_fit_ends_with_status_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(everything, words, "farcall run f.py")
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "usage: farcall run f.py" in captured.err
    assert captured.out == ""


def test_help_goes_to_stdout_with_the_docstring_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(everything, ["--help"], "farcall run f.py")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "Does everything." in out
    assert "default: 3" in out
    assert "{RED,GREEN}" in out


def test_star_args_alone_takes_the_words_as_they_are() -> None:
    def main(*words: str) -> None: ...

    def numbers(*words: int) -> None: ...

    def mixed(first: int, *words: str) -> None: ...

    assert parse(main, ["--x", "1", "-v"], "p").args == ("--x", "1", "-v")
    assert parse(numbers, ["1", "2"], "p").args == (1, 2)
    with pytest.raises(InvalidError, match=r"\*words .* must be the only parameter"):
        parse(mixed, [], "p")


def test_positional_only_parameters_are_given_by_position() -> None:
    def main(a: int, b: int = 2, /, c: int = 3) -> None: ...

    assert parse(main, ["--a", "1", "--c", "4"], "p") == ((1,), {"c": 4})


def test_a_type_that_no_word_can_give_is_named() -> None:
    def main(data: bytes) -> None: ...

    def optional(x: int, data: dict[str, int] | None = None) -> None: ...

    with pytest.raises(InvalidError, match=r"parameter data is of type .*bytes"):
        parse(main, [], "p")
    assert parse(optional, ["--x", "1"], "p").kwargs == {"x": 1}


def test_annotations_that_cannot_be_evaluated_do_not_hinder() -> None:
    def main(x: "int", y: "NotThere" = None) -> None: ...  # noqa: F821 # pyright: ignore

    assert call(main, "--x", "1")["x"] in (1, "1")  # pyright: ignore[reportUnknownArgumentType]


def test_synopsis_is_one_line() -> None:
    def main(count: int, name: str = "x", fast: bool = True) -> None: ...

    assert synopsis(main) == "--count INT [--name STR] [--fast | --no-fast]"
