"""`farcall app`: the apps that run, what each is doing, and their end."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from farcall.cli.listing import duration_or_dash, local_time, print_json, print_table, utc_time
from farcall.cli.lookup import ask, find_app, running_server

if TYPE_CHECKING:
    from farcall.wire.inspection import AppDetails, AppListing, FunctionListing
    from farcall.wire.messages import AppReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    listing = commands.add_parser("list", help="the apps that run, detached ones too")
    listing.add_argument("--all", "-a", action="store_true", help="those that stopped within the last week, too")
    status = commands.add_parser("status", help="what the functions of an app are doing")
    for command in (listing, status):
        command.add_argument("--json", action="store_true", help="print JSON")
    stop = commands.add_parser("stop", help="end an app: cancel its calls, stop its containers")
    for command in (status, stop):
        command.add_argument("ref", metavar="REF", help="the app's id or name")
    stop.add_argument("--force", action="store_true", help="do not wait for exit hooks")


def run(options: argparse.Namespace) -> int:
    if options.command == "list":
        return _list(ended=options.all, as_json=options.json)
    if options.command == "status":
        return _status(options.ref, as_json=options.json)
    return _stop(options.ref, force=options.force)


def _list(*, ended: bool, as_json: bool) -> int:
    from farcall.sdk import client
    from farcall.wire.inspection import AppListing, ListApps

    apps: list[AppListing] = []
    server = client.connect_or_start() if ended else client.connect_existing()
    if server is not None:
        try:
            apps = ask(server, lambda seq: ListApps(seq, ended), list[AppListing])
        finally:
            server.close()
    if as_json:
        print_json([app_json(app) for app in apps])
    elif apps:
        print_table(
            ("APP", "NAME", "STATE", "STARTED", "FUNCTIONS", "CONTAINERS", "RUNNING", "WAITING"),
            [
                (
                    app.app_id,
                    app.name,
                    app.state,
                    local_time(app.created_at),
                    *(f"{number:,}" for number in (app.functions, app.containers, app.running, app.waiting)),
                )
                for app in apps
            ],
        )
    else:
        print(
            "no app runs" if server is not None else "no app runs: the farcall server does not either", file=sys.stderr
        )
    return 0


def _status(reference: str, *, as_json: bool) -> int:
    from farcall.wire.inspection import AppDetails, GetApp

    with running_server(f"app {reference!r}") as server:
        app_id = find_app(server, reference, ended=True).app_id
        details = ask(server, lambda seq: GetApp(seq, app_id), AppDetails)
    if as_json:
        print_json(details_json(details))
        return 0
    app = details.app
    ended = f", stopped {local_time(app.stopped_at)}" if app.stopped_at is not None else ""
    print(f"{app.app_id}  {app.name}  {app.state}, started {local_time(app.created_at)}{ended}")
    if app.state == "stopped":
        print(f"its logs: farcall logs {app.app_id}")
        return 0
    print(
        f"inputs: {app.running:,} running, {app.waiting:,} waiting; since the server knows it {app.done:,} done, "
        f"{app.failed:,} of them failed"
    )
    print()
    print_table(
        ("FUNCTION", "CONTAINERS", "STARTING", "RUNNING", "WAITING", "MEAN"),
        [
            (
                function.name,
                *(f"{n:,}" for n in (function.containers, function.starting, function.running, function.waiting)),
                duration_or_dash(function.mean_seconds),
            )
            for function in details.functions
        ],
    )
    if details.containers:
        from farcall.cli.container import container_table

        print()
        container_table(details.containers)
    return 0


def _stop(reference: str, *, force: bool) -> int:
    from farcall.cli.output import count
    from farcall.sdk.app import EXIT_GRACE

    with running_server(f"app {reference!r} to stop") as server:
        app = find_app(server, reference)
        report = server.stop_app(app.app_id, 0.0 if force else EXIT_GRACE)
    print(
        f"stopped {app.app_id} ({app.name}): {count(report.containers, 'container')}, "
        f"{count(report.inputs_cancelled, 'call')} cancelled",
        file=sys.stderr,
    )
    return 0


def app_json(app: "AppListing") -> dict[str, Any]:
    """An app, as `--json` shows it everywhere."""
    return {
        "app_id": app.app_id,
        "name": app.name,
        "state": app.state,
        "created_at": utc_time(app.created_at),
        "stopped_at": utc_time(app.stopped_at),
        "functions": app.functions,
        "containers": app.containers,
        "running": app.running,
        "waiting": app.waiting,
        "done": app.done,
        "failed": app.failed,
    }


def function_json(function: "FunctionListing") -> dict[str, Any]:
    """A function, as `--json` shows it everywhere."""
    return {
        "function_id": function.function_id,
        "name": function.name,
        "is_class": function.is_class,
        "containers": function.containers,
        "starting": function.starting,
        "running": function.running,
        "waiting": function.waiting,
        "mean_seconds": function.mean_seconds,
    }


def details_json(details: "AppDetails") -> dict[str, Any]:
    """An app with its functions and containers."""
    from farcall.cli.container import container_json

    return app_json(details.app) | {
        "functions": [function_json(function) for function in details.functions],
        "containers": [container_json(container) for container in details.containers],
    }


def app_line(app: "AppReport") -> str:
    """One app with what it is doing."""
    from farcall.cli.output import count

    return (
        f"  {app.app_id}  {app.state:12} {app.name}: {count(app.functions, 'function')}, "
        f"{count(app.containers, 'container')}, {app.running:,} running, {app.pending:,} waiting"
    )
