"""`farcall worker`: this machine as a worker of a server, and the workers that a server has."""

import argparse
import asyncio
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from farcall import errors, settings
from farcall.cli.listing import local_time, print_json, print_table, utc_time
from farcall.cli.usage import UsageError
from farcall.settings.paths import private_directory

if TYPE_CHECKING:
    from farcall.wire.workers import WorkerListing

_SOON_SECONDS = 0.3  # in which a drain as a rule is over, where nothing runs
_LOOK_SECONDS = 0.5
_TOKEN_MOST = 64 * 1024  # bytes of a token's file that are read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    join = commands.add_parser("join", help="be a worker of a server, until this is interrupted")
    join.add_argument("--token-file", metavar="FILE", help="a file with the token; else FARCALL_WORKER_TOKEN has it")
    join.add_argument("--name", default="", help="what it is called (default: this machine's name)")
    join.add_argument("--address", default="", metavar="HOST:PORT", help="where the server is, if the token is wrong")
    join.add_argument("--region", default="", help="where it is, for functions with region=")
    join.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="what it is; can be given several times"
    )
    join.add_argument(
        "--peer-listen",
        metavar="HOST:PORT",
        help="where other workers get content from it, or off (default: any port, at its address for the server)",
    )
    join.add_argument("--simulate-gpu", metavar="TYPE=N", help="pretend to have GPUs, as T4=4,H100=8")
    listing = commands.add_parser("list", help="the server's workers")
    listing.add_argument("--json", action="store_true", help="print JSON")
    drain = commands.add_parser("drain", help="give a worker no further containers; returns when it has none")
    drain.add_argument("worker", metavar="NAME")
    drain.add_argument("--undo", action="store_true", help="give it containers again")
    remove = commands.add_parser("remove", help="forget a worker, whose certificate is refused from then on")
    remove.add_argument("worker", metavar="NAME")
    remove.add_argument("--force", action="store_true", help="even if it has containers, which are lost")
    token = commands.add_parser("token", help="what workers join with")
    tokens = token.add_subparsers(required=True, metavar="COMMAND", dest="token_command")
    create = tokens.add_parser("create", help="make a token, and print it: this once")
    create.add_argument("--label", default="", help="what it is for, for `farcall worker token list`")
    create.add_argument("--expires", default="1d", metavar="TIME", help="how long it is good for, as 30m or 7d (1d)")
    create.add_argument("--address", default="", metavar="HOST:PORT", help="where workers reach the server")
    known = tokens.add_parser("list", help="the tokens that were made; their secrets are not kept")
    known.add_argument("--json", action="store_true", help="print JSON")
    revoke = tokens.add_parser("revoke", help="let nobody join with a token any more; workers that have stay")
    revoke.add_argument("token_id", metavar="TOKEN_ID")


def run(options: argparse.Namespace) -> int:
    match options.command:
        case "join":
            return _join(options)
        case "token":
            return _token(options)
        case "list":
            return _list(as_json=options.json)
        case "drain":
            return _drain(options.worker, undo=options.undo)
        case _:
            return _remove(options.worker, force=options.force)


def _ask(make: Callable[[int], Any], kind: Any = None) -> Any:
    """The running server's answer to a request, as a value of that type; None for one without a body."""
    import msgspec

    from farcall.sdk import client

    running = client.connect_existing()
    if running is None:
        raise errors.ConnectionError(
            "the farcall server does not run: start it with `farcall server start --listen HOST:PORT`"
        )
    with closing(running):
        answer, _ = running.request(make)
    return None if kind is None else msgspec.msgpack.decode(answer.body, type=kind)


# --- a server's workers


def _list(*, as_json: bool) -> int:
    from farcall.wire.workers import ListWorkers, WorkerListing

    found: list[WorkerListing] = _ask(ListWorkers, list[WorkerListing])
    if as_json:
        print_json([_worker_json(one) for one in found])
        return 0
    rows: list[list[str]] = []
    for one in found:
        labels = [one.region] * bool(one.region) + [f"{name}={value}" for name, value in sorted(one.labels.items())]
        gpus = ", ".join(f"{kind} ({count})" for kind, count in sorted(one.gpus.items()))
        is_here = bool(one.version)
        rows.append(
            [
                one.name,
                one.state,
                str(one.containers) if is_here else "-",
                f"{one.cores:g}" if is_here else "-",
                f"{one.free_memory:,} of {one.memory:,} MiB" if is_here else "-",
                gpus or "-",
                " ".join(labels) or "-",
                one.address or "-",
                one.version or "-",
            ]
        )
    headings = ("NAME", "STATE", "CONTAINERS", "CORES", "FREE MEMORY", "GPUS", "REGION, LABELS", "ADDRESS", "VERSION")
    print_table(headings, rows)
    return 0


def _worker_json(one: "WorkerListing") -> dict[str, Any]:
    import msgspec

    shown: dict[str, Any] = msgspec.to_builtins(one)
    for size in ("memory", "free_memory"):
        shown[f"{size}_mib"] = shown.pop(size)
    return shown | {"joined_at": utc_time(one.joined_at or None)}


def _drain(worker: str, *, undo: bool) -> int:
    from farcall.wire.workers import DrainWorker, ListWorkers, WorkerListing

    if undo:
        _ask(lambda seq: DrainWorker(seq, worker, undo))
        print(f"worker {worker} gets containers again", file=sys.stderr)
        return 0
    known: list[WorkerListing] = _ask(ListWorkers, list[WorkerListing])
    name = next((one.name for one in known if worker in (one.name, one.worker_id)), worker)
    shown = _Waiting(name)
    draining = threading.Thread(target=shown.drain, args=[worker], daemon=True)
    draining.start()
    try:
        draining.join(_SOON_SECONDS)
        while draining.is_alive():
            shown.tell()
            draining.join(_LOOK_SECONDS)
    except KeyboardInterrupt:
        shown.clear()
        print(
            f"worker {name} is still being drained: `farcall worker list` says when it has no containers, `farcall "
            f"worker drain {name} --undo` gives it containers again",
            file=sys.stderr,
        )
        raise
    shown.clear()
    if shown.error is not None:
        raise shown.error
    print(f"worker {name} is drained: it has no containers, and gets none", file=sys.stderr)
    return 0


class _Waiting:
    """A worker that is being drained, and what is waited for: a line that is drawn anew on a terminal, else one line,
    once."""

    def __init__(self, name: str) -> None:
        self.error: BaseException | None = None
        self._name = name
        self._live = sys.stderr.isatty()
        self._has_told = False

    def drain(self, worker: str) -> None:
        """Returns when it has no containers, or with an `error`. In a thread of its own."""
        from farcall.wire.workers import DrainWorker

        try:
            _ask(lambda seq: DrainWorker(seq, worker))
        except BaseException as error:
            self.error = error

    def tell(self) -> None:
        """Says what is waited for."""
        from farcall.cli.output import count
        from farcall.wire.inspection import ContainerListing, ListContainers

        if self._has_told and not self._live:
            return
        try:
            found: list[ContainerListing] = _ask(ListContainers, list[ContainerListing])
        except errors.FarcallError:
            return  # of a server that ends, which who waits for the drain is told
        mine = [one for one in found if one.worker == self._name]
        if not mine:
            return
        inputs = sum(one.running for one in mine)
        self._has_told = True
        line = f"worker {self._name}: waiting for {count(len(mine), 'container')}, {count(inputs, 'input')} running"
        if self._live:
            sys.stderr.write(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K")
            sys.stderr.flush()
        else:
            print(f"{line} (Ctrl-C: it is drained all the same)", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Nothing is waited for any more."""
        if self._live and self._has_told:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _remove(worker: str, *, force: bool) -> int:
    from farcall.wire.workers import RemoveWorker

    _ask(lambda seq: RemoveWorker(seq, worker, force))
    print(f"worker {worker} is removed", file=sys.stderr)
    return 0


def _token(options: argparse.Namespace) -> int:
    import msgspec

    from farcall.settings import amounts
    from farcall.wire.workers import CreateWorkerToken, ListWorkerTokens, RevokeWorkerToken, TokenListing, WorkerToken

    if options.token_command == "create":
        try:
            lifetime = amounts.seconds(options.expires)
        except ValueError as error:
            raise UsageError(f"--expires {options.expires!r}: write {error}") from None
        made: WorkerToken = _ask(
            lambda seq: CreateWorkerToken(seq, options.label, lifetime, options.address), WorkerToken
        )
        print(made.token)
        print(
            f"token {made.token_id}, good until {local_time(made.expires_at)}. On the other machine:\n"
            "  farcall worker join --token-file FILE   (a file that has it)",
            file=sys.stderr,
        )
        return 0
    if options.token_command == "revoke":
        _ask(lambda seq: RevokeWorkerToken(seq, options.token_id))
        print(f"token {options.token_id} is revoked", file=sys.stderr)
        return 0
    found: list[TokenListing] = _ask(ListWorkerTokens, list[TokenListing])
    if options.json:
        print_json(
            [
                msgspec.to_builtins(one)
                | {"created_at": utc_time(one.created_at), "expires_at": utc_time(one.expires_at)}
                for one in found
            ]
        )
        return 0
    rows = [
        [
            one.token_id,
            one.state,
            str(one.joined),
            local_time(one.created_at),
            local_time(one.expires_at),
            one.label or "-",
        ]
        for one in found
    ]
    print_table(("TOKEN", "STATE", "JOINED", "CREATED", "EXPIRES", "LABEL"), rows)
    return 0


# --- this machine as a worker


def _join(options: argparse.Namespace) -> int:
    from farcall.cluster.join import Membership, Options
    from farcall.cluster.sharing import NOWHERE
    from farcall.cluster.tokens import Token, split_address
    from farcall.mounts.lazy.sources import Source
    from farcall.sdk.embedded import check_system
    from farcall.worker import process

    check_system()
    text = _token_text(options.token_file)
    chosen = settings.load({"peer_listen": options.peer_listen})
    if chosen.peer_listen not in ("", NOWHERE):
        split_address(chosen.peer_listen)
    place, endpoint = chosen.object_store, chosen.object_store_endpoint
    given = Options(
        Token.decode(text) if text else None,
        options.name,
        options.address,
        options.region,
        _labels(options.label),
        Source(place, endpoint) if place else None,
        chosen.peer_listen,
    )
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    directory = settings.paths().state / "worker"
    membership = Membership(directory)
    try:
        process.run(_work(membership, given, options.simulate_gpu))
    except errors.FarcallError as error:
        raise error.with_traceback(None) from None  # the event loop's frames tell nobody anything
    finally:
        membership.close()
    return 0


def _token_text(file: str | None) -> str:
    # Whatever this process starts has no use for it.
    given = os.environ.pop("FARCALL_WORKER_TOKEN", "").strip()
    if file is None:
        return given
    try:
        with open(file, "rb") as source:
            text = source.read(_TOKEN_MOST).decode().strip()
    except OSError as error:
        raise errors.InvalidError(f"the token cannot be read from {file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise errors.InvalidError(f"there is no token in {file}: it is no text") from None
    if not text:
        raise errors.InvalidError(
            f"there is no token in {file}, which is empty: `farcall worker token create` on the server's machine "
            "prints one"
        )
    return text


def _labels(words: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UsageError(f"--label {word!r} is not KEY=VALUE")
        labels[key] = value
    return labels


async def _work(membership: Any, given: Any, simulate_gpu: str | None) -> None:
    from farcall.cluster.join import join
    from farcall.content.store import Store
    from farcall.worker.gpus import found_or_simulated

    leaving = asyncio.Event()
    loop = asyncio.get_running_loop()
    here = asyncio.current_task()

    def interrupted() -> None:
        if leaving.is_set() and here is not None:
            here.cancel()  # asked twice: at once
        leaving.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, interrupted)
    paths = settings.paths()
    launcher_state = private_directory(membership.directory / "launcher")
    try:
        await join(
            membership, given, Store(paths.content), launcher_state, found_or_simulated(simulate_gpu), _say, leaving
        )
    except asyncio.CancelledError:
        _say("ended; what ran here is lost")


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
