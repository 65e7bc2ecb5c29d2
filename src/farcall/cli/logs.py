"""`farcall logs REF`: what an app, a call or a container has written, while it runs and afterwards."""

import argparse
import re
import sys
import time
from datetime import datetime
from typing import Any

from farcall.cli.usage import UsageError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ref", metavar="REF", help="an app's name (its last run) or the id of an app, a call or a container"
    )
    parser.add_argument("--since", metavar="TIME", help="from then on: 30s, 10m, 2h, 1d, or a date and time")
    parser.add_argument("--grep", metavar="TEXT", default="", help="lines that contain TEXT only")
    parser.add_argument("--failed", action="store_true", help="lines of inputs that failed only")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until it is over")
    parser.add_argument("--tail", "-n", type=int, metavar="N", help="the last N lines only")


def run(options: argparse.Namespace) -> int:
    reference: str = options.ref
    since = seconds_since(options.since, time.time()) if options.since else None

    from farcall import errors
    from farcall.cli import signals
    from farcall.cli.output import Renderer
    from farcall.cli.tracebacks import output_lost
    from farcall.sdk import client, output
    from farcall.wire import messages

    renderer = Renderer(sys.stdout, sys.stderr)
    connected = client.connect_or_start()
    shown = 0

    def show(message: Any) -> None:
        nonlocal shown
        if isinstance(message, messages.LogBatch):
            shown += len(message.entries)
            for entry in message.entries:
                renderer(output.log_line(entry))

    connected.on_entries = show
    known = True
    try:
        with signals.interruptible():
            connected.request(
                lambda seq: messages.ReadLogs(
                    seq, reference, since, options.grep, options.failed, options.follow, options.tail
                )
            )
            if not shown and re.match("(ap|fc|ta)-", reference):
                kept = _Count()
                connected.on_entries = kept
                connected.request(lambda seq: messages.ReadLogs(seq, reference, tail=1))
                known = kept.entries > 0 or any(app.app_id == reference for app in connected.status().apps)
    except KeyboardInterrupt:
        if renderer.lost is None:
            raise
    finally:
        renderer.finish()
        connected.close()
    if renderer.lost is not None:
        return output_lost(renderer.lost)
    if not known:
        raise errors.NotFoundError(
            f"nothing is kept of {reference}: there is no such app, call or container, or it wrote nothing"
        )
    if not shown:
        print(f"farcall: no such lines of {reference} are kept", file=sys.stderr)
    return 0


class _Count:
    """Counts the entries that come."""

    def __init__(self) -> None:
        self.entries = 0

    def __call__(self, message: Any) -> None:
        self.entries += len(getattr(message, "entries", ()))


def seconds_since(text: str, now: float) -> float:
    """The point in time that "10m" (ago) or an ISO date and time means, in seconds since the epoch."""
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return now - float(ago[1]) * _SECONDS[ago[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise UsageError(
            f"--since {text!r} is neither like 10m or 2h nor a date and time like 2026-01-31T12:00"
        ) from None
