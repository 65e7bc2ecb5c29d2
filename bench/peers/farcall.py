"""farcall: a server of its own, in the state directory that the environment names. Whoever made that ends it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import farcall
from bench import functions, processes
from bench.peers import Measurement, Result, run
from bench.peers.flood import BULK, flood
from bench.peers.measurements import (
    PENDING,
    WARM_UP,
    call_times,
    fan_out,
    single_spawns,
    spawned_noops,
    there_and_back,
    warm_call,
)
from bench.samples import median, seconds, timed

NAME = "farcall"
HELLO = Path(__file__).parents[2] / "examples" / "hello.py"
MAP_INPUTS = 100_000
BURST = 100
NAPS, NAP_SECONDS, NAP_CONTAINERS = 500, 0.2, 50
IDLE_APPS, IDLE_FUNCTIONS = 10, 10
IDLE_SECONDS = 10.0
SPAWNED_NOOPS = 20_000
KILLED_AFTER = 20  # results
GONE_SECONDS = 30.0  # for containers that have answered to be gone


def command(*words: str) -> list[str]:
    """The command line `farcall ...`: the installed program, else the module."""
    program = Path(sys.executable).with_name("farcall")
    return [str(program), *words] if program.exists() else [sys.executable, "-m", "farcall", *words]


def status() -> dict[str, Any]:
    """What the server says of itself, {"running": False} where there is none."""
    answer = subprocess.run(command("server", "status", "--json"), capture_output=True, text=True, check=False)
    return json.loads(answer.stdout)


def stop_server() -> None:
    """Ends the server and all that it runs; returns when it is gone."""
    subprocess.run(command("server", "stop", "--force"), check=True, capture_output=True)


def measured_warm_call() -> Iterator[Result]:
    with functions.app.run():
        yield from warm_call(NAME, lambda: functions.echo.remote(1), 3000)
        yield from call_times(f"{NAME}, .aio", asyncio.run(_awaited_calls(2000)))


async def _awaited_calls(count: int) -> list[float]:
    taken: list[float] = []
    for _ in range(WARM_UP + count):
        begin = time.perf_counter()
        await functions.echo.remote.aio(1)
        taken.append(time.perf_counter() - begin)
    return taken[WARM_UP:]


def noop_map() -> Iterator[Result]:
    def mapped(count: int) -> int:
        return sum(functions.noop.map(range(count)))

    with functions.app.run():
        mapped(20_000)  # both containers are there
        yield fan_out(NAME, mapped, MAP_INPUTS)


def new_container(row: str, function: farcall.Function[[], float, float], count: int) -> Iterator[Result]:
    with functions.app.run():
        function.remote()  # the template is there, the files are in the page cache
        taken: list[float] = []
        for _ in range(count):
            _await_no_containers()
            begin = time.monotonic()
            taken.append(function.remote() - begin)
    yield Result(row, NAME, 1e3 * median(taken), count)


def burst() -> Iterator[Result]:
    with functions.app.run():
        list(functions.one_of_many.map(range(2)))
        _await_no_containers()
        begin = time.monotonic()
        containers = set(functions.one_of_many.map(range(BURST)))
        taken = time.monotonic() - begin
    if len(containers) != BURST:
        raise AssertionError(f"{len(containers)} containers answered for {BURST}")
    yield Result("burst of 100", NAME, taken, BURST)


def _await_no_containers() -> None:
    """Returns when containers that answered before are gone, so that their end is not measured with the next start."""
    from farcall.sdk import client

    deadline = time.monotonic() + GONE_SECONDS
    while client.current().status().containers:
        if time.monotonic() > deadline:
            raise TimeoutError(f"containers for one input are still there after {GONE_SECONDS:.0f} s")
        time.sleep(0.005)


def from_zero() -> Iterator[Result]:
    with functions.app.run():
        functions.nap.remote(0)  # the template is there
        _await_no_containers()
        begin = time.monotonic()
        containers = set(functions.nap.map([NAP_SECONDS] * NAPS, order_outputs=False))
        taken = time.monotonic() - begin
    if len(containers) > NAP_CONTAINERS:
        raise AssertionError(f"{len(containers)} containers answered where {NAP_CONTAINERS} may be")
    yield Result("500 inputs of 0.2 s", NAME, taken, NAPS)


def idle() -> Iterator[Result]:
    with ExitStack() as running:
        for app in functions.numbered_apps(IDLE_APPS, IDLE_FUNCTIONS):
            running.enter_context(app.run())
            calls = [function.spawn(number) for number, function in enumerate(app.registered_functions.values())]
            for number, call in enumerate(calls):
                if call.get(timeout=GONE_SECONDS) != number:
                    raise AssertionError(f"function {number} of {app.name} has not answered its input")
        _await_no_containers()
        pid = int(status()["pid"])
        launcher = _launcher()
        helpers = [launcher, *processes.descendants(launcher)]
        before, begin = processes.cpu_seconds([pid, *helpers]), time.monotonic()
        time.sleep(IDLE_SECONDS)
        used = processes.cpu_seconds([pid, *helpers]) - before
        yield Result("idle server, processor", NAME, 100 * used / (time.monotonic() - begin), 1)
        for contender, pids in ((f"{NAME} server", [pid]), (f"{NAME} launcher, templates", helpers)):
            yield Result("idle server, memory", contender, processes.memory(pids).resident, len(pids))


@contextmanager
def bulk() -> Generator[Callable[[int], object]]:
    """`spawn_map` of an app of this process."""
    with functions.app.run():
        functions.occupied.spawn(0)
        yield lambda count: functions.occupied.spawn_map(range(count))


def spawning() -> Iterator[Result]:
    with functions.app.run():
        functions.occupied.spawn(0)
        yield from single_spawns(NAME, lambda: functions.occupied.spawn(0), lambda: flood(bulk, BULK))


def noops() -> Iterator[Result]:
    def echoed(count: int) -> int:
        return sum(functions.noop.spawn_map(range(count)).iter())

    with functions.app.run():
        echoed(2_000)
        yield spawned_noops(NAME, echoed, SPAWNED_NOOPS)


def pending() -> Iterator[Result]:
    """Memory while inputs are spawned and wait, and what a new server takes after the old one was killed with them."""
    with functions.app.run():
        functions.echo.remote(0)
        pid = int(status()["pid"])
        processes.forget_peak_memory(pid)
        call = functions.one_by_one.spawn_map(range(PENDING))
        for number in range(KILLED_AFTER):
            call.get(index=number)
        peak = processes.peak_memory(pid)
        begin = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        answered = _await_answer(pid) - begin
        if call.get(index=KILLED_AFTER + 1) != KILLED_AFTER + 1:  # the one before may have been running
            raise AssertionError("an input that was pending was not taken up again")
        resumed = time.monotonic() - begin
        peak = max(peak, processes.peak_memory(int(status()["pid"])))
        call.cancel()
    yield Result("100,000 pending, memory", f"{NAME} server", peak, PENDING)
    yield Result("restart with 100,000 pending", f"{NAME}, .remote answered", answered, 1)
    yield Result("restart with 100,000 pending", f"{NAME}, pending ones go on", resumed, 1)


def _await_answer(killed: int) -> float:
    """When another server than that one has answered a call."""
    from farcall.sdk import client

    deadline = time.monotonic() + GONE_SECONDS
    while time.monotonic() < deadline:
        try:
            functions.echo.remote(0)
            server = client.current().server
            if server is not None and server.pid != killed:
                return time.monotonic()
        except farcall.errors.ConnectionLostError:
            pass  # it is told that the old one is gone; asked again, it starts the next one
    raise TimeoutError(f"no server has answered {GONE_SECONDS:.0f} s after the last one was killed")


def large(row: str) -> Iterator[Result]:
    with functions.app.run():
        yield from there_and_back(row, NAME, functions.echo.remote)


def import_time() -> Iterator[Result]:
    for contender, program in ((NAME, "import farcall"), (f"{NAME}, App used", "import farcall; farcall.App()")):
        more = _more_than([sys.executable, "-c", "pass"], [sys.executable, "-c", program], 15)
        yield Result("import farcall", contender, 1e3 * median(more), len(more))


def help_time() -> Iterator[Result]:
    more = _more_than([sys.executable, "-c", "pass"], command("--help"), 10)
    yield Result("farcall --help", NAME, 1e3 * median(more), len(more))


def run_hello() -> Iterator[Result]:
    hello = command("run", str(HELLO))
    _run(hello)
    taken = timed(lambda: _run(hello), 5)
    yield Result("run hello, warm", NAME, 1e3 * median(taken), len(taken))
    cold: list[float] = []
    for _ in range(2):
        stop_server()
        cold.append(seconds(lambda: _run(hello)))
    yield Result("run hello, cold", NAME, 1e3 * median(cold), len(cold))


def _more_than(bare: list[str], command: list[str], count: int) -> list[float]:
    """Seconds that a command takes more than another, run in turn: what slows the machine down slows both."""
    taken = [(seconds(lambda: _run(bare)), seconds(lambda: _run(command))) for _ in range(count)]
    return [second - first for first, second in taken]


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        last = " / ".join(line for line in done.stderr.splitlines()[-4:] if line.strip())
        raise RuntimeError(f"exit code {done.returncode} of {' '.join(words)}: {last}")


def _launcher() -> int:
    from farcall import settings
    from farcall.launcher.process import LOCK_NAME

    return int((settings.paths().launcher_state / LOCK_NAME).read_text())


def memory() -> Iterator[Result]:
    with functions.app.run():
        containers: set[int] = set()
        for function, contender in (
            (functions.namespace_after_fork, NAME),
            (functions.namespace_after_exec, f"{NAME}, exec"),
        ):
            members = processes.in_pid_namespace(function.remote())
            if len(members) != 2:
                raise AssertionError(f"an idle container has {len(members)} processes where it should have two")
            containers.update(members)
            yield Result("idle container", contender, processes.memory(members).private, len(members))
        server = [int(status()["pid"])]
        launcher = _launcher()
        helpers = {launcher, *processes.descendants(launcher)} - containers
        for contender, pids in ((f"{NAME} server", server), (f"{NAME} launcher, templates", helpers)):
            used = processes.memory(pids)
            yield Result("server memory, private", contender, used.private, len(pids))
            yield Result("server memory, resident", contender, used.resident, len(pids))


def isolation() -> Iterator[Result]:
    """Whether containers are measured with everything on: 1 for each kind of separation that is there, else 0."""
    with functions.app.run():
        members = processes.in_pid_namespace(functions.namespace_after_fork.remote())
        for kind, there in processes.isolation(members[-1]).items():
            yield Result("isolation", kind, float(there), 1)


@contextmanager
def peer() -> Generator[Mapping[str, Measurement]]:
    os.environ.setdefault("NO_COLOR", "1")
    yield {
        "warm call": measured_warm_call,
        "no-op map": noop_map,
        "new container, fork": lambda: new_container("new container, fork", functions.first_line_after_fork, 15),
        "new container, exec": lambda: new_container("new container, exec", functions.first_line_after_exec, 8),
        "burst": burst,
        "from zero": from_zero,
        "idle": idle,
        "spawning": spawning,
        "spawned no-ops": noops,
        "pending": pending,
        "100 MB bytes": lambda: large("100 MB bytes"),
        "100 MB array": lambda: large("100 MB array"),
        "import": import_time,
        "help": help_time,
        "run hello": run_hello,
        "memory": memory,
        "isolation": isolation,
    }


if __name__ == "__main__":
    run(peer)
