"""`farcall call`: calls that were spawned and those under way, their inputs and results, and their end."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from farcall import errors
from farcall.cli.container import input_json
from farcall.cli.listing import duration_or_dash, local_time, print_json, print_table, utc_time
from farcall.cli.lookup import any_server, ask, find_app, running_server

if TYPE_CHECKING:
    from farcall.wire.inspection import CallListing

_SHOWN_INPUTS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    listing = commands.add_parser("list", help="the newest calls: spawned ones, and others while they run")
    listing.add_argument("--app", metavar="REF", help="of one app only, by its name or id")
    listing.add_argument("--unfinished", "-u", action="store_true", help="those that have inputs without a result only")
    listing.add_argument("--limit", "-n", type=int, default=50, metavar="N", help="at most so many (default 50)")
    get = commands.add_parser("get", help="a call and its inputs, or with --result what it returned")
    get.add_argument("--result", action="store_true", help="wait for the result and print it, or raise what it raised")
    get.add_argument("--index", type=int, default=0, metavar="N", help="with --result: of that input (default 0)")
    for command in (listing, get):
        command.add_argument("--json", action="store_true", help="print JSON")
    cancel = commands.add_parser("cancel", help="cancel a call")
    cancel.add_argument("--terminate-containers", action="store_true", help="end the containers that run it, too")
    for command in (get, cancel):
        command.add_argument("call_id", metavar="CALL", help="its id, fc-...")


def run(options: argparse.Namespace) -> int:
    if options.command == "list":
        return _list(options.app, options.limit, unfinished=options.unfinished, as_json=options.json)
    if options.command == "cancel":
        return _cancel(options.call_id, terminate=options.terminate_containers)
    if options.result:
        return _result(options.call_id, options.index, as_json=options.json)
    return _get(options.call_id, as_json=options.json)


def _list(app_reference: str | None, limit: int, *, unfinished: bool, as_json: bool) -> int:
    from farcall.wire.inspection import CallListing, ListCalls

    with any_server() as server:
        app_id = find_app(server, app_reference, ended=True).app_id if app_reference is not None else ""
        calls = ask(server, lambda seq: ListCalls(seq, app_id, limit, unfinished), list[CallListing])
    if as_json:
        print_json([call_json(call) for call in calls])
    elif calls:
        print_table(
            ("CALL", "APP", "FUNCTION", "KIND", "STATE", "STARTED", "FINISHED", "FAILED"),
            [
                (
                    call.call_id,
                    call.app,
                    call.function,
                    call.kind,
                    call.state,
                    local_time(call.created_at),
                    f"{call.finished:,} of {call.inputs:,}" if call.kind == "spawned" else f"{call.inputs:,} left",
                    "" if call.failed is None else f"{call.failed:,}",
                )
                for call in calls
            ],
        )
    else:
        print("no calls", file=sys.stderr)
    return 0


def _get(call_id: str, *, as_json: bool) -> int:
    from farcall.wire.inspection import CallDetails, GetCall

    with any_server() as server:
        details = ask(server, lambda seq: GetCall(seq, call_id), CallDetails)
    call = details.call
    if as_json:
        print_json(call_json(call) | {"inputs_shown": [input_json(one) for one in details.inputs]})
        return 0
    print(f"{call.call_id}  {call.function} of {call.app or call.app_id}, {call.kind}: {call.state}")
    finished = f", finished {local_time(call.finished_at)}" if call.finished_at is not None else ""
    print(f"started {local_time(call.created_at)}{finished}")
    if call.kind == "spawned":
        failed = f", {call.failed:,} of them failed" if call.failed else ""
        print(f"{call.finished:,} of {call.inputs:,} inputs finished{failed}")
    print()
    shown = details.inputs[:_SHOWN_INPUTS]
    print_table(
        ("INPUT", "STATE", "ATTEMPT", "CONTAINER", "RUNNING", "ERROR"),
        [
            (
                str(one.index),
                one.state,
                str(one.attempts),
                one.container_id or "-",
                duration_or_dash(one.seconds),
                one.error.partition("\n")[0],
            )
            for one in shown
        ],
    )
    if call.inputs > len(shown):
        print(f"... and {call.inputs - len(shown):,} more")
    if call.finished:
        print(f"\nits result: farcall call get {call.call_id} --result")
    return 0


def _result(call_id: str, index: int, *, as_json: bool) -> int:
    from farcall.sdk.function_call import FunctionCall

    value: Any = FunctionCall.from_id(call_id).get(index=index)
    if as_json:
        try:
            print_json(value)
        except TypeError as error:
            raise errors.InvalidError(f"the result cannot be said in JSON ({error}); leave out --json") from None
    else:
        print(value if isinstance(value, str) else repr(value))
    return 0


def _cancel(call_id: str, *, terminate: bool) -> int:
    from farcall.wire import messages

    with running_server(f"call {call_id} to cancel") as server:
        server.request(lambda seq: messages.CancelCall(seq, call_id, None, terminate))
    print(f"cancelled {call_id}", file=sys.stderr)
    return 0


def call_json(call: "CallListing") -> dict[str, Any]:
    """A call, as `--json` shows it everywhere."""
    return {
        "call_id": call.call_id,
        "kind": call.kind,
        "app_id": call.app_id,
        "app": call.app,
        "function": call.function,
        "state": call.state,
        "created_at": utc_time(call.created_at),
        "finished_at": utc_time(call.finished_at),
        "inputs": call.inputs,
        "finished": call.finished,
        "failed": call.failed,
    }
