"""What commands list: tables for people, JSON for programs."""

import re
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from farcall.cli.terminal import Style

_ID = re.compile(r"[a-z]{2}-[0-9A-Za-z]+")
_NARROWEST = 10  # columns of the terminal, for names


def print_json(value: Any) -> None:
    """Prints a value as JSON, indented. Structs become objects with their fields."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows below headings, in columns. On a terminal names are cut where they would not fit, and nothing else:
    what is longer even so is for the terminal to wrap."""
    width = shutil.get_terminal_size((0, 0)).columns if sys.stdout.isatty() else 0
    first, *others = columns(headings, rows, width, cut_lines=False)
    print(Style.of(sys.stdout).dim(first))
    for line in others:
        print(line)


def columns(
    headings: Sequence[str], rows: Sequence[Sequence[str]], width: int = 0, *, cut_lines: bool = True
) -> list[str]:
    """Lines of a table, the headings first; numbers are aligned to the right. Where they would be longer than `width`,
    unless that is 0, names are cut, the longest first, and then the lines, where `cut_lines` says so; ids stay whole,
    as they are there to be copied."""
    table = [tuple(visible(cell.replace("\n", " ")) for cell in row) for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    numbers = [
        all(cell[:1].isdigit() or cell in ("-", "") for cell in column[1:]) for column in zip(*table, strict=True)
    ]
    ids = [all(_ID.fullmatch(cell) for cell in column[1:]) for column in zip(*table, strict=True)]
    names = [place for place in range(len(widths)) if not numbers[place] and not ids[place]]
    excess = sum(widths) + 2 * (len(widths) - 1) - width if width else 0
    while excess > 0 and names:
        widest = max(names, key=lambda place: widths[place])
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
        excess -= 1
    lines: list[str] = []
    for row in table:
        cells = [
            cell.rjust(size) if number else _cut(cell, size).ljust(size)
            for cell, size, number in zip(row, widths, numbers, strict=True)
        ]
        line = "  ".join(cells).rstrip()
        lines.append(_cut(line, width) if width and cut_lines else line)
    return lines


def visible(text: str) -> str:
    """A name as it may be shown: what would move the cursor, or anything else of the terminal, as its escape."""
    return text if text.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def duration_or_dash(seconds: float | None) -> str:
    """Seconds for people, "-" where they are not known."""
    from farcall.cli.output import duration

    if seconds is None:
        return "-"
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else duration(seconds)


def bytes_or_dash(size: int | None) -> str:
    """A size for people, "-" where it is not known."""
    if size is None:
        return "-"
    return f"{size / 2**20:.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"


def local_time(seconds: float) -> str:
    """A time, seconds since the epoch, for people: "2026-01-31 12:00:05" where they are."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def utc_time(seconds: float | None) -> str | None:
    """A time, seconds since the epoch, for programs: "2026-01-31T12:00:05.123Z" (RFC 3339)."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
