"""`farcall server`: the local server, which otherwise starts and ends by itself."""

import argparse
import os
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from farcall import errors, settings
from farcall.cli.usage import UsageError
from farcall.settings import flags

if TYPE_CHECKING:
    from farcall.wire.messages import StatusReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    start = commands.add_parser("start", help="start it, unless it runs")
    start.add_argument("--simulate-gpu", metavar="TYPE=N", help="pretend to have GPUs, as T4=4,H100=8")
    for setting in settings.SETTINGS:
        if setting.of_server:
            name = setting.name.replace("_", "-")
            words = setting.help.replace("%", "%%")
            if setting.kind is bool:
                start.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None, help=words)
            else:
                start.add_argument(f"--{name}", metavar=str(setting.default) or "VALUE", help=words)
    stop = commands.add_parser("stop", help="end it; refused while apps run")
    stop.add_argument("--force", action="store_true", help="end it with all that it runs")
    status = commands.add_parser("status", help="what it is doing; exit code 3 when it does not run")
    status.add_argument("--json", action="store_true", help="print JSON")
    logs = commands.add_parser("logs", help="its own log")
    logs.add_argument("--follow", "-f", action="store_true", help="go on as it grows")
    logs.add_argument("--tail", "-n", type=int, default=100, metavar="N", help="how many to begin with (default 100)")


def run(options: argparse.Namespace) -> int:
    if options.command == "start":
        return _start(vars(options))
    if options.command == "stop":
        return _stop(force=options.force)
    if options.command == "status":
        return _status(as_json=options.json)
    return _logs(settings.paths().server_log, options.tail, follow=options.follow)


def _start(options: dict[str, Any]) -> int:
    from farcall.sdk import client

    given = {setting.name: options.get(setting.name) for setting in settings.SETTINGS}
    try:
        found = settings.load(given)
    except errors.InvalidError as error:
        raise UsageError(str(error)) from None
    by_flag = [one for one in settings.SETTINGS if one.of_server and given[one.name] is not None]
    words = [_flag(one, given[one.name]) for one in by_flag]
    if words and client.server_url():
        gpus = options["simulate_gpu"]
        return _start_there([*words, *([f"--simulate-gpu={gpus}"] if gpus else [])])
    os.environ.update(found.of_server())
    os.environ[flags.VARIABLE] = ",".join(one.variable for one in by_flag)
    if found.simulate_gpu:
        os.environ["FARCALL_SIMULATE_GPU"] = found.simulate_gpu
    running = client.connect_existing()
    if running is not None and found.simulate_gpu:
        running.close()
        running = client.connect_or_start()
        word = "runs with these GPUs"
    elif running is None:
        running = client.connect_or_start()
        word = "started"
    else:
        word = "runs already"
    report = running.status()
    where = running.url or settings.paths().server_socket
    running.close()
    if word == "runs already":
        _check_the_same(report, by_flag, given, words)
    print(f"the farcall server {word}: pid {report.pid}, {where}", file=sys.stderr)
    _tell_of_shut_out(report, sys.stderr)
    return 0


def _flag(setting: settings.Setting, value: object) -> str:
    name = setting.name.replace("_", "-")
    return f"--{'' if value else 'no-'}{name}" if setting.kind is bool else f"--{name}={value}"


def _check_the_same(
    report: "StatusReport", by_flag: list[settings.Setting], given: dict[str, Any], words: list[str]
) -> None:
    """What a server is given holds from its start. Raises ConflictError where the one that runs has something else."""
    other: list[str] = []
    for setting in by_flag:
        read = setting.reads or str
        has = report.settings.get(setting.name, "")
        if not has or read(has) != read(str(given[setting.name])):
            value = has == "True" if setting.kind is bool else has
            other.append(f"with {_flag(setting, value)}" if has else f"without --{setting.name.replace('_', '-')}")
    if other:
        raise errors.ConflictError(
            f"the farcall server runs already (pid {report.pid}), {' and '.join(other)}, and keeps that until it ends. "
            f"End it with `farcall server stop`, and start it again: `farcall server start {shlex.join(words)}`"
        )


def _tell_of_shut_out(report: "StatusReport", stream: TextIO) -> None:
    """Workers that have joined look for a server that listens."""
    if report.shut_out:
        names = ", ".join(report.shut_out)
        print(
            f"it does not listen for workers, so those that have joined cannot come back: {names}. End it with "
            "`farcall server stop`, and start it with `farcall server start --listen HOST:PORT`, or set `listen`",
            file=stream,
        )


def _start_there(words: list[str]) -> int:
    """On the server's own machine: only there does it begin with them."""
    from farcall.cli import elsewhere
    from farcall.link.install import MISSING
    from farcall.sdk import client

    code = elsewhere.run_there(["server", "start", *words], has_server=False)
    if code == MISSING:
        client.connect_or_start().close()  # which installs it, and starts a server without them
        elsewhere.run_there(["server", "stop"], has_server=False)
        code = elsewhere.run_there(["server", "start", *words], has_server=False)
    return code


def _stop(*, force: bool) -> int:
    from farcall.sdk import client
    from farcall.wire import messages

    if url := client.server_url():
        return _stop_there(url, force=force)
    running = client.connect_existing()
    if running is None:
        print("the farcall server does not run", file=sys.stderr)
        return 0
    pid = running.server.pid if running.server else 0
    ending = None
    if hasattr(os, "pidfd_open"):
        with suppress(OSError):  # it has ended
            ending = os.pidfd_open(pid)
    try:
        running.request(lambda seq: messages.StopServer(seq, force))
    except errors.ConnectionLostError:
        pass  # it ended before it could answer
    except errors.ConflictError as error:
        raise errors.ConflictError(f"{error}. `farcall server stop --force` ends that too") from None
    finally:
        running.close()
    if ending is not None:
        import select

        select.select([ending], [], [], 30.0)
        os.close(ending)
    print("the farcall server has stopped", file=sys.stderr)
    return 0


def _stop_there(url: str, *, force: bool) -> int:
    """Whatever farcall is there: to stop a server is no reason to install this one, nor to start one."""
    from farcall.cli import elsewhere
    from farcall.link.install import MISSING
    from farcall.sdk.elsewhere import end_links

    code = elsewhere.run_there(["server", "stop", *(["--force"] if force else [])], has_server=False)
    if code == MISSING:
        print(f"the farcall server does not run: no farcall was installed at {url} from here", file=sys.stderr)
        code = 0
    if code == 0:
        end_links(url)
    return code


def _status(*, as_json: bool) -> int:
    from farcall.cli.app import app_line
    from farcall.cli.output import count, duration
    from farcall.sdk import client

    running = None
    if client.server_url():  # to connect would start it
        from farcall.cli import elsewhere
        from farcall.link.install import MISSING

        code = elsewhere.run_there(["server", "status", *(["--json"] if as_json else [])], has_server=False)
        if code != MISSING:
            return code
    else:
        running = client.connect_existing()
    if running is None:
        print(
            '{"state": "stopped"}' if as_json else "the farcall server does not run; the first `farcall run` starts it"
        )
        return 3
    report = running.status()
    running.close()
    if as_json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode({"state": "running", **msgspec.structs.asdict(report)})).decode())
        return 0
    print(f"farcall {report.version} from {report.prefix}, pid {report.pid}, up {duration(report.uptime)}")
    print(
        f"{count(len(report.apps), 'app')}, {count(report.containers, 'container')}, "
        f"{count(report.running, 'input')} running, {report.pending:,} waiting"
    )
    print(
        f"in memory: {report.queued_inputs:,} of {report.queue_inputs:,} inputs, "
        f"{report.queued_bytes / 2**20:,.0f} of {report.queue_memory / 2**20:,.0f} MiB"
    )
    if report.workers:
        print("workers: " + ", ".join(f"{name} ({state})" for name, state in report.workers.items()))
    _tell_of_shut_out(report, sys.stdout)
    if report.gpus:
        listed = ", ".join(f"{kind} ({number})" for kind, number in sorted(report.gpus.items()))
        print(f"GPUs: {listed}{', simulated' if report.gpus_simulated else ''}")
    for app in report.apps:
        print(app_line(app))
    return 0


def _logs(file: Path, lines: int, *, follow: bool) -> int:
    try:
        stream = file.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise errors.NotFoundError(f"there is no log at {file}: no server has run with this state directory") from None
    with stream:
        sys.stdout.writelines(stream.readlines()[-lines:] if lines > 0 else [])
        sys.stdout.flush()
        while follow:
            if new := stream.read():
                sys.stdout.write(new)
                sys.stdout.flush()
            else:
                time.sleep(0.2)
    return 0
