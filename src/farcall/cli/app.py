"""`farcall app`: the apps that run, and their end."""

import argparse
import sys
from typing import TYPE_CHECKING

from farcall import errors
from farcall.cli.usage import UsageError, nearest

if TYPE_CHECKING:
    from farcall.sdk.client import Client
    from farcall.wire.messages import AppReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    commands.add_parser("list", help="the apps that run, detached ones too")
    stop = commands.add_parser("stop", help="end an app: cancel its calls, stop its containers")
    stop.add_argument("ref", metavar="REF", help="the app's id or name")
    stop.add_argument("--force", action="store_true", help="do not wait for exit hooks")


def run(options: argparse.Namespace) -> int:
    from farcall.sdk import client

    running = client.connect_existing()
    if running is None:
        if options.command == "stop":
            raise errors.NotFoundError(f"there is no app {options.ref!r} to stop: the farcall server does not run")
        print("no app runs: the farcall server does not run either", file=sys.stderr)
        return 0
    try:
        if options.command == "stop":
            return _stop(running, options.ref, force=options.force)
        return _list(running)
    finally:
        running.close()


def _list(running: "Client") -> int:
    apps = running.status().apps
    if not apps:
        print("no app runs", file=sys.stderr)
    for app in apps:
        print(app_line(app))
    return 0


def _stop(running: "Client", reference: str, *, force: bool) -> int:
    from farcall.cli.output import count
    from farcall.sdk.app import EXIT_GRACE

    apps = running.status().apps
    found = [app for app in apps if reference in (app.app_id, app.name)]
    if not found:
        hint = nearest(reference, {name for app in apps for name in (app.name, app.app_id)})
        raise errors.NotFoundError(f"no app {reference!r} runs{hint}")
    if len(found) > 1:
        listing = "\n".join(app_line(app) for app in found)
        raise UsageError(f"several apps are named {reference!r}; give the id of one:\n{listing}")
    app = found[0]
    report = running.stop_app(app.app_id, 0.0 if force else EXIT_GRACE)
    print(
        f"stopped {app.app_id} ({app.name}): {count(report.containers, 'container')}, "
        f"{count(report.inputs_cancelled, 'call')} cancelled",
        file=sys.stderr,
    )
    return 0


def app_line(app: "AppReport") -> str:
    """One app with what it is doing."""
    from farcall.cli.output import count

    return (
        f"  {app.app_id}  {app.state:12} {app.name}: {count(app.functions, 'function')}, "
        f"{count(app.containers, 'container')}, {app.running:,} running, {app.pending:,} waiting"
    )
