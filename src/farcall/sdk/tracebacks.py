"""Remote frames: a traceback as plain values, and as real traceback objects at the other side.

The rebuilt frames carry file, line, columns and function names, and no code or variables. Their source comes from the
local file where that has the same line, else from the lines that came along, which are given to `linecache`.
"""

import itertools
import os
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_MAX_FRAMES = 4000  # of one traceback; more (deep recursion) lose their middle
_MAX_LINES = 20  # of source for one frame
_MAX_LINE = 2000  # characters of one source line
_NO_COLUMN = -1


class Frame(NamedTuple):
    """One entry of a traceback."""

    filename: str
    line: int
    end_line: int
    column: int  # UTF-8 bytes from the line's start; -1 where unknown
    end_column: int
    name: str
    qualified_name: str
    first_line: int  # of the function
    module: str
    source: tuple[str, ...]  # from `line` on; empty where it could not be read


def frames_of(traceback: types.TracebackType | None, source_roots: Mapping[str, str]) -> list[Frame]:
    """The entries of `traceback`, outermost first. farcall's own are cut from the top, unless FARCALL_TRACEBACK=full.

    `source_roots` maps directories here to where the reader has them.
    """
    entries: list[types.TracebackType] = []
    while traceback is not None:
        entries.append(traceback)
        traceback = traceback.tb_next
    if os.environ.get("FARCALL_TRACEBACK") != "full":
        user = next((position for position, entry in enumerate(entries) if not _is_ours(entry)), 0)
        entries = entries[user:]
    left_out = len(entries) - _MAX_FRAMES
    if left_out <= 0:
        return [_frame(entry, source_roots) for entry in entries]
    half = _MAX_FRAMES // 2
    gap = f"... {left_out:,} frames left out ..."
    return [
        *(_frame(entry, source_roots) for entry in entries[:half]),
        Frame("<farcall>", 1, 1, _NO_COLUMN, _NO_COLUMN, gap, gap, 1, "", ()),
        *(_frame(entry, source_roots) for entry in entries[-half:]),
    ]


def traceback_from(frames: Sequence[Frame]) -> types.TracebackType | None:
    """Real traceback objects for `frames`; None where there are none."""
    made: dict[Frame, types.FrameType] = {}
    traceback: types.TracebackType | None = None
    for frame in reversed(frames):
        stub = made.get(frame)
        if stub is None:
            stub = made[frame] = _stub_frame(frame, _provide_source(frame))
        traceback = types.TracebackType(traceback, stub, max(stub.f_lasti, 0), frame.line)
    return traceback


def format_frames(frames: Iterable[Frame]) -> str:
    """`frames` as text, as Python prints a traceback, header included; empty where there are none."""
    import traceback

    entries = [
        traceback.FrameSummary(
            frame.filename, frame.line, frame.name, lookup_line=False, line=frame.source[0] if frame.source else ""
        )
        for frame in frames
    ]
    if not entries:
        return ""
    return "Traceback (most recent call last):\n" + "".join(traceback.StackSummary.from_list(entries).format())


def _is_ours(entry: types.TracebackType) -> bool:
    module = entry.tb_frame.f_globals.get("__name__")
    return isinstance(module, str) and (module == "farcall" or module.startswith("farcall."))


def _frame(entry: types.TracebackType, source_roots: Mapping[str, str]) -> Frame:
    import linecache

    code = entry.tb_frame.f_code
    line: int | None = entry.tb_lineno
    positions = next(itertools.islice(code.co_positions(), entry.tb_lasti // 2, None), (None, None, None, None))
    _, end_line, column, end_column = positions
    if line is None:  # pyright: ignore[reportUnnecessaryComparison] - None for some instructions that Python inserts
        line = code.co_firstlineno
    if end_line is None or end_line < line:
        end_line = line
    module = entry.tb_frame.f_globals.get("__name__")
    linecache.lazycache(code.co_filename, entry.tb_frame.f_globals)
    last = min(end_line, line + _MAX_LINES - 1)
    source = [linecache.getline(code.co_filename, number)[:_MAX_LINE] for number in range(line, last + 1)]
    return Frame(
        _translated(code.co_filename, source_roots),
        line,
        end_line,
        _NO_COLUMN if column is None else column,
        _NO_COLUMN if end_column is None else end_column,
        code.co_name,
        code.co_qualname,
        code.co_firstlineno,
        module if isinstance(module, str) else "",
        tuple(source) if any(source) else (),
    )


def _translated(filename: str, source_roots: Mapping[str, str]) -> str:
    for root in sorted(source_roots, key=len, reverse=True):
        prefix = root.rstrip("/") + "/"
        if filename.startswith(prefix):
            return os.path.join(source_roots[root], filename[len(prefix) :])
    return filename


_provided: dict[str, list[str]] = {}  # file name: its known lines, the very lists that linecache has


def _provide_source(frame: Frame) -> str:
    """Sees to it that linecache knows the frame's lines. Returns the file name to show."""
    if not frame.source:
        return frame.filename
    import linecache  # late: only failures need it

    filename = frame.filename
    if filename not in _provided and linecache.getlines(filename):
        if linecache.getline(filename, frame.line).strip() == frame.source[0].strip():
            return filename
        # Another file by the same name: the container's own, or one that was edited since. Its text would mislead.
        filename = f"{filename} (in the container)"
    lines = _provided.setdefault(filename, [])
    lines.extend(["\n"] * (frame.line - 1 + len(frame.source) - len(lines)))
    lines[frame.line - 1 : frame.line - 1 + len(frame.source)] = frame.source
    # No modification time: linecache.checkcache leaves the entry alone.
    linecache.cache[filename] = (len(lines), None, lines, filename)
    return filename


_STUB = compile("keep(frame())", "<farcall>", "exec")


def _caller() -> types.FrameType:
    return sys._getframe(1)  # pyright: ignore[reportPrivateUsage]


def _stub_frame(frame: Frame, filename: str) -> types.FrameType:
    """A frame that ran code of the given name and place. Executing is the only way to get one."""
    kept: list[types.FrameType] = []
    code = _STUB.replace(
        co_filename=filename,
        co_name=frame.name,
        co_qualname=frame.qualified_name,
        co_firstlineno=frame.first_line,
        co_linetable=_line_table(frame, len(_STUB.co_code) // 2),
    )
    names: dict[str, object] = {"keep": kept.append, "frame": _caller, "__builtins__": {}}
    exec(code, names)
    names.clear()
    names.update(__name__=frame.module, __file__=filename)
    return kept[0]


def _line_table(frame: Frame, code_units: int) -> bytes:
    """Says that every instruction is at the frame's place, in the format of Python 3.11 and later.

    Source: CPython, Objects/locations.md. An entry covers 8 code units at most: first byte
    0x80 | code << 3 | units - 1, code 14 (all fields) or 13 (no columns), the line as a difference from the last
    entry.
    """
    has_columns = frame.column >= 0 and frame.end_column >= 0
    kind = 14 if has_columns else 13
    table = bytearray()
    difference = frame.line - frame.first_line
    while code_units > 0:
        units = min(code_units, 8)
        table.append(0x80 | kind << 3 | units - 1)
        table += _varint(difference << 1 if difference >= 0 else -difference << 1 | 1)
        if has_columns:
            table += _varint(frame.end_line - frame.line) + _varint(frame.column + 1) + _varint(frame.end_column + 1)
        difference = 0
        code_units -= units
    return bytes(table)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 64:
        encoded.append(0x40 | value & 63)
        value >>= 6
    encoded.append(value)
    return bytes(encoded)
