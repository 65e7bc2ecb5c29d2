"""What commands list: tables for people, JSON for programs."""

import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from farcall.cli.terminal import Style


def print_json(value: Any) -> None:
    """Prints a value as JSON, indented. Structs become objects with their fields."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows below headings, in columns. On a terminal lines are cut where they would not fit."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    first, *others = columns(headings, rows, width)
    print(Style.of(sys.stdout).dim(first))
    for line in others:
        print(line)


def columns(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int = 0) -> list[str]:
    """Lines of a table, the headings first; numbers are aligned to the right. Lines longer than `width` are cut, unless
    that is 0."""
    table = [tuple(cell.replace("\n", " ") for cell in row) for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    numbers = [
        all(cell[:1].isdigit() or cell in ("-", "") for cell in column[1:]) for column in zip(*table, strict=True)
    ]
    lines: list[str] = []
    for row in table:
        cells = [
            cell.rjust(size) if number else cell.ljust(size)
            for cell, size, number in zip(row, widths, numbers, strict=True)
        ]
        line = "  ".join(cells).rstrip()
        lines.append(line[: width - 1] + "…" if 0 < width < len(line) else line)
    return lines


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
