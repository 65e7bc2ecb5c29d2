"""`farcall container`: the containers that run, how each started and what it does, commands in them, and their end."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from farcall.cli.listing import bytes_or_dash, duration_or_dash, local_time, print_json, print_table, utc_time
from farcall.cli.lookup import ask, find_app, running_server
from farcall.cli.usage import UsageError

if TYPE_CHECKING:
    from farcall.wire.inspection import ContainerDetails, ContainerListing, InputListing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    listing = commands.add_parser("list", help="the containers that run")
    listing.add_argument("--app", metavar="REF", help="of one app only, by its name or id")
    inspect = commands.add_parser("inspect", help="how a container started, what it does, how it ended")
    for command in (listing, inspect):
        command.add_argument("--json", action="store_true", help="print JSON")
    execute = commands.add_parser(
        "exec",
        help="run a command in a container",
        description="Run a command in a container that runs, with all that confines it. Its exit code is this one's.",
    )
    execute.add_argument(
        "--pty", action=argparse.BooleanOptionalAction, help="with a terminal (default: where this is one)"
    )
    execute.add_argument("--env", metavar="KEY=VALUE", action="append", default=[], help="set a variable for it")
    execute.add_argument("--workdir", "-w", metavar="DIR", default="", help="where it starts")
    stop = commands.add_parser("stop", help="end a container; what it runs is run again in another one")
    stop.add_argument("--graceful", action="store_true", help="let it finish what it runs, and its exit hooks, first")
    for command in (inspect, execute, stop):
        command.add_argument("container_id", metavar="CONTAINER", help="its id, ta-...")
    execute.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER)


def run(options: argparse.Namespace) -> int:
    if options.command == "list":
        return _list(options.app, as_json=options.json)
    if options.command == "inspect":
        return _inspect(options.container_id, as_json=options.json)
    if options.command == "stop":
        return _stop(options.container_id, graceful=options.graceful)
    return _exec(options)


def _list(app_reference: str | None, *, as_json: bool) -> int:
    from farcall.sdk import client
    from farcall.wire.inspection import ContainerListing, ListContainers

    containers: list[ContainerListing] = []
    running = client.connect_existing()
    if running is not None:
        try:
            app_id = find_app(running, app_reference).app_id if app_reference is not None else None
            found = ask(running, ListContainers, list[ContainerListing])
            containers = [one for one in found if app_id in (None, one.app_id)]
        finally:
            running.close()
    if as_json:
        print_json([container_json(one) for one in containers])
    elif containers:
        container_table(containers)
    else:
        print("no container runs", file=sys.stderr)
    return 0


def container_table(containers: "Sequence[ContainerListing]") -> None:
    """Prints containers for people."""
    elsewhere = any(one.worker for one in containers)
    headings = ("CONTAINER", "APP", "FUNCTION", "STATE", "STARTED", "RUNNING", "DONE", "CPU", "MEMORY")
    print_table(
        (*headings, *["WORKER"] * elsewhere),
        [
            (
                one.container_id,
                one.app,
                one.function,
                one.state,
                local_time(one.created_at),
                f"{one.running:,}",
                f"{one.done:,}",
                duration_or_dash(one.cpu_seconds),
                bytes_or_dash(one.memory),
                *[one.worker or "-"] * elsewhere,
            )
            for one in containers
        ],
    )


def _inspect(container_id: str, *, as_json: bool) -> int:
    from farcall.wire.inspection import ContainerDetails, GetContainer

    with running_server(f"container {container_id}") as server:
        details = ask(server, lambda seq: GetContainer(seq, container_id), ContainerDetails)
    if as_json:
        print_json(details_json(details))
        return 0
    one = details.container
    print(f"{one.container_id}  {one.function} of {one.app or one.app_id}")
    print(f"  state     {one.state}, since {local_time(one.created_at)}")
    if one.worker:
        print(f"  worker    {one.worker}")
    if details.ended_at is not None:
        print(f"  ended     {local_time(details.ended_at)}: {details.ended}")
    request, limit = details.cpu
    print(f"  cpu       {request:g} requested, {'no limit' if limit is None else f'{limit:g} at most'}", end="")
    print(f"; {duration_or_dash(one.cpu_seconds)} used" if one.cpu_seconds is not None else "")
    request, limit = details.memory
    print(f"  memory    {request} MiB requested, {'no limit' if limit is None else f'{limit} MiB at most'}", end="")
    print(f"; {bytes_or_dash(one.memory)} used by {one.processes} processes" if one.memory is not None else "")
    print(f"  python    {details.python or 'of its image'}")
    if details.image_id:
        print(f"  image     {details.image_id}")
    if details.runtime != "native":
        print(f"  runtime   {details.runtime}")
    for note in details.notes:
        print(f"  note      {note}")
    print(f"  inputs    {one.running:,} running, {one.queued:,} queued behind, {one.done:,} done")
    for held in details.inputs[:20]:
        running = f"for {duration_or_dash(held.seconds)}" if held.seconds is not None else ""
        print(f"            {held.call_id} input {held.index}  {held.state} {running}".rstrip())
    if details.timeline:
        print("  start     ms since it was asked for")
        before = 0.0
        for step, at in details.timeline.items():
            print(f"            {1000 * at:9.1f}  +{1000 * (at - before):.1f}  {step}")
            before = at
    return 0


def _stop(container_id: str, *, graceful: bool) -> int:
    from farcall.wire.inspection import StopContainer

    with running_server(f"container {container_id}") as server:
        server.request(lambda seq: StopContainer(seq, container_id, graceful))
    print(f"stopped {container_id}", file=sys.stderr)
    return 0


def _exec(options: argparse.Namespace) -> int:
    from farcall.cli.container_exec import execute

    words: list[str] = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        raise UsageError("there is no command to run: farcall container exec CONTAINER COMMAND...")
    environment: dict[str, str] = {}
    for word in options.env:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"--env {word!r} is not KEY=VALUE")
        environment[key] = value
    with running_server(f"container {options.container_id}") as server:
        return execute(
            server, options.container_id, words, terminal=options.pty, environment=environment, workdir=options.workdir
        )


def container_json(one: "ContainerListing") -> dict[str, Any]:
    """A container, as `--json` shows it everywhere."""
    return {
        "container_id": one.container_id,
        "app_id": one.app_id,
        "app": one.app,
        "function": one.function,
        "state": one.state,
        "created_at": utc_time(one.created_at),
        "running": one.running,
        "queued": one.queued,
        "done": one.done,
        "cpu_seconds": one.cpu_seconds,
        "memory_bytes": one.memory,
        "processes": one.processes,
        "worker": one.worker,
    }


def input_json(one: "InputListing") -> dict[str, Any]:
    """An input, as `--json` shows it everywhere."""
    return {
        "call_id": one.call_id,
        "index": one.index,
        "function": one.function,
        "state": one.state,
        "attempts": one.attempts,
        "container_id": one.container_id or None,
        "running_seconds": one.seconds,
        "finished_at": utc_time(one.finished_at),
        "error": one.error or None,
    }


def details_json(details: "ContainerDetails") -> dict[str, Any]:
    """A container with how it started and what it holds."""
    return container_json(details.container) | {
        "ended_at": utc_time(details.ended_at),
        "ended": details.ended or None,
        "cpu": {"request": details.cpu[0], "limit": details.cpu[1]},
        "memory_mib": {"request": details.memory[0], "limit": details.memory[1]},
        "python": details.python or None,
        "image_id": details.image_id or None,
        "runtime": details.runtime,
        "notes": details.notes,
        "inputs": [input_json(one) for one in details.inputs],
        "timeline": [{"step": step, "seconds": round(at, 6)} for step, at in details.timeline.items()],
    }
