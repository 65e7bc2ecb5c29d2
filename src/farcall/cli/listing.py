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
    """Prints rows below headings, in columns. On a terminal the last column is cut where the line would not fit."""
    lines = [tuple(cell.replace("\n", " ") for cell in row) for row in (headings, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings) - 1)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    style = Style.of(sys.stdout)
    for number, line in enumerate(lines):
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        text = "  ".join([*cells, line[-1]]).rstrip()
        if room and len(text) > room:
            text = text[: room - 1] + "…"
        print(style.dim(text) if number == 0 else text)


def local_time(seconds: float) -> str:
    """A time, seconds since the epoch, for people: "2026-01-31 12:00:05" where they are."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def utc_time(seconds: float | None) -> str | None:
    """A time, seconds since the epoch, for programs: "2026-01-31T12:00:05.123Z" (RFC 3339)."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
