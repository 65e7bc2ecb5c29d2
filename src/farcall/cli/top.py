"""`farcall top`: everything that runs, with what it does and uses, drawn anew every second."""

import argparse
import os
import select
import sys
import textwrap
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from farcall.cli.listing import bytes_or_dash, columns, duration_or_dash, print_json
from farcall.cli.lookup import ask
from farcall.cli.terminal import Style

if TYPE_CHECKING:
    from farcall.sdk.client import Client
    from farcall.wire.inspection import Overview

_HEADINGS = ("APP", "FUNCTION", "CONTAINERS", "STARTING", "RUNNING", "WAITING", "DONE/S", "MEAN", "CPU", "MEMORY")
_SHORT_HEADINGS = ("APP", "FUNCTION", "CONT", "START", "RUN", "WAIT", "DONE/S", "MEAN", "CPU", "MEMORY")
_WIDE = 110  # columns of a terminal, from which on headings are whole words
FIRST_LOOK_SECONDS = 0.5  # between the two looks that rates need
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # another screen, without a cursor; and back
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--interval", "-i", type=float, default=1.0, metavar="SECONDS", help="how often (default 1)")
    parser.add_argument("--once", action="store_true", help="once only, as it is where there is no terminal")
    parser.add_argument("--json", action="store_true", help="print JSON, once")


def run(options: argparse.Namespace) -> int:
    from farcall.sdk import client

    server = client.connect_existing()
    if server is None:
        print('{"state": "stopped"}' if options.json else "the farcall server does not run")
        return 3
    try:
        if options.json:
            print_json(overview_json(_look(server).overview))
        elif options.once or not sys.stdout.isatty():
            first = _look(server)
            time.sleep(FIRST_LOOK_SECONDS)
            print("\n".join(_lines(first, _look(server), Style.of(sys.stdout))))
        else:
            with suppress(KeyboardInterrupt):
                _watch(server, max(0.1, options.interval))
    finally:
        server.close()
    return 0


class _Look(NamedTuple):
    """What was seen, and when."""

    at: float
    overview: "Overview"


class _Use(NamedTuple):
    """What the containers of a function have used and done so far."""

    cpu: float
    memory: int
    done: int


def _look(server: "Client") -> _Look:
    from farcall.wire.inspection import GetOverview, Overview

    return _Look(time.monotonic(), ask(server, GetOverview, Overview))


def _watch(server: "Client", interval: float) -> None:
    style = Style.of(sys.stdout)
    before = _look(server)
    with _screen():
        pause = min(interval, FIRST_LOOK_SECONDS)
        while not _quit_within(pause):
            now = _look(server)
            size = os.get_terminal_size(1)
            lines = _lines(before, now, style, size.columns)
            if len(lines) > size.lines:
                lines = [*lines[: size.lines - 1], style.dim(f"... {len(lines) - size.lines + 1} more")]
            sys.stdout.write(_HOME + "".join(f"{line}{_REST_OF_LINE}\r\n" for line in lines[:-1]))
            sys.stdout.write(f"{lines[-1]}{_REST_OF_LINE}{_REST_OF_SCREEN}")
            sys.stdout.flush()
            before, pause = now, interval


@contextmanager
def _screen() -> Generator[None]:
    """A screen of our own, and keys as they are pressed; the terminal is as it was afterwards."""
    import termios
    import tty

    keys = sys.stdin.isatty()
    before = termios.tcgetattr(0) if keys else None
    sys.stdout.write(_ENTER)
    sys.stdout.flush()
    try:
        if keys:
            tty.setcbreak(0)
        yield
    finally:
        if before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def _quit_within(seconds: float) -> bool:
    """Waits; whether q was pressed meanwhile."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([0], [], [], left)
        if ready and os.read(0, 100).lower() in (b"q", b"", b"\x1b"):
            return True
    return False


def _lines(before: _Look, now: _Look, style: Style, width: int = 0) -> list[str]:
    """What is shown, a line each, at most `width` columns wide unless that is 0."""
    from farcall.cli.output import count, duration

    overview = now.overview
    seconds = max(now.at - before.at, 1e-3)
    earlier, uses = _uses(before.overview), _uses(overview)
    rows: list[tuple[tuple[int, int, str, str], tuple[str, ...]]] = []
    names = [details.app.name for details in overview.apps]
    for details in overview.apps:
        name = details.app.name
        if names.count(name) > 1:
            name += f" …{details.app.app_id[-6:]}"
        for function in details.functions:
            key = details.app.app_id, function.name
            use = uses.get(key, _Use(0.0, 0, 0))
            earlier_use = earlier.get(key, use)
            measured = any(one.cpu_seconds is not None for one in details.containers if one.function == function.name)
            rows.append(
                (
                    (-function.running, -function.containers, name, function.name),
                    (
                        name,
                        function.name,
                        f"{function.containers:,}",
                        f"{function.starting:,}",
                        f"{function.running:,}",
                        f"{function.waiting:,}",
                        f"{max(0, use.done - earlier_use.done) / seconds:,.1f}",
                        duration_or_dash(function.mean_seconds),
                        f"{100 * max(0.0, use.cpu - earlier_use.cpu) / seconds:.0f}%" if measured else "-",
                        bytes_or_dash(use.memory) if measured else "-",
                    ),
                )
            )
    apps = [details.app for details in overview.apps]
    cpu = sum(max(0.0, use.cpu - earlier.get(key, use).cpu) for key, use in uses.items()) / seconds
    memory = sum(use.memory for use in uses.values())
    lines = [
        f"farcall {overview.version}, up {duration(overview.uptime)}: {count(len(apps), 'app')}, "
        f"{count(sum(app.containers for app in apps), 'container')}, {sum(app.running for app in apps):,} running, "
        f"{sum(app.waiting for app in apps):,} waiting, {sum(app.done for app in apps):,} done, "
        f"{sum(app.failed for app in apps):,} failed",
        f"containers use {cpu:.1f} of {overview.cores} cores and {bytes_or_dash(memory)}; the machine has "
        f"{bytes_or_dash(overview.memory_available)} of {bytes_or_dash(overview.memory)} free",
        "",
    ]
    if overview.workers:
        lines.insert(2, "workers: " + ", ".join(f"{name} ({state})" for name, state in overview.workers.items()))
    lines = [part for line in lines for part in (textwrap.wrap(line, width) if width and line else [line])]
    headings = _SHORT_HEADINGS if 0 < width < _WIDE else _HEADINGS
    if rows:
        table = columns(headings, [row for _, row in sorted(rows)], width)
        lines += [style.dim(table[0]), *table[1:]]
    else:
        lines.append("no app runs")
    return lines


def _uses(overview: "Overview") -> dict[tuple[str, str], _Use]:
    """By app and function."""
    found: dict[tuple[str, str], _Use] = {}
    for details in overview.apps:
        for one in details.containers:
            key = one.app_id, one.function
            use = found.get(key, _Use(0.0, 0, 0))
            found[key] = _Use(use.cpu + (one.cpu_seconds or 0.0), use.memory + (one.memory or 0), use.done + one.done)
    return found


def overview_json(overview: "Overview") -> dict[str, Any]:
    """What `--json` shows."""
    from farcall.cli.app import details_json

    return {
        "state": "running",
        "version": overview.version,
        "uptime_seconds": overview.uptime,
        "cores": overview.cores,
        "memory_bytes": overview.memory,
        "memory_available_bytes": overview.memory_available,
        "workers": overview.workers,
        "apps": [details_json(details) for details in overview.apps],
    }
