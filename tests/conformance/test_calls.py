"""Semantics: calls."""

import asyncio
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import calls_app
import pytest
from calls_app import app  # noqa: F401 - the fixture runs it

import farcall
from farcall import errors
from farcall.sdk import twin
from tests.conformance.conftest import until_it_says

if TYPE_CHECKING:
    from tests.conftest import Installation


def test_remote_blocks_and_its_twin_awaits() -> None:
    """f.remote(x) blocks; f.remote.aio(x) awaits; for plain and async functions alike, many at once."""
    assert calls_app.double.remote(4) == 8
    assert calls_app.double_later.remote(4) == 8

    async def both() -> list[int]:
        return await asyncio.gather(
            calls_app.double.remote.aio(1),
            calls_app.double_later.remote.aio(2),
            *(calls_app.double_later.remote.aio(n) for n in range(50)),
        )

    assert asyncio.run(both()) == [2, 4, *range(0, 100, 2)]


def test_every_method_that_does_io_has_a_twin() -> None:
    """The same for every method that does I/O: spawn, get, cancel, gather, map, starmap, for_each, remote_gen."""

    async def use_all() -> None:
        call = await calls_app.double.spawn.aio(3)
        assert await call.get.aio(timeout=20) == 6
        other = await calls_app.double.spawn.aio(4)
        assert await farcall.FunctionCall.gather.aio(call, other) == [6, 8]
        assert [x async for x in calls_app.double.map.aio(range(3))] == [0, 2, 4]
        assert [x async for x in calls_app.double.starmap.aio([(1,), (2,)])] == [2, 4]
        assert await calls_app.double.for_each.aio(range(3)) is None
        assert [x async for x in calls_app.count.remote_gen.aio(3)] == [0, 1, 2]
        spawned = await calls_app.double.spawn_map.aio(range(3))
        assert [x async for x in spawned.iter.aio(end=3)] == [0, 2, 4]
        held = await calls_app.Gate().hold.spawn.aio()
        await held.cancel.aio()
        with pytest.raises(errors.InputCancelledError):
            await held.get.aio(timeout=20)

    asyncio.run(use_all())


def test_blocking_calls_in_a_running_loop_work_and_warn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blocking call made inside a running event loop works but warns once, with the awaited form spelled out."""
    monkeypatch.setattr(twin, "_warned", set())

    async def main() -> list[int]:
        return [calls_app.double.remote(1), calls_app.double.remote(2)]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert asyncio.run(main()) == [2, 4]
    ours = [warning for warning in caught if issubclass(warning.category, errors.AsyncUsageWarning)]
    assert len(ours) == 1
    assert "await double.remote.aio(...)" in str(ours[0].message)
    assert ours[0].filename == __file__


def test_calls_from_many_threads_and_loops() -> None:
    """Any thread and any event loop may call, at the same time, over the one connection."""

    def in_thread(start: int) -> list[int]:
        return [calls_app.double.remote(n) for n in range(start, start + 30)]

    def in_loop(start: int) -> list[int]:
        async def main() -> list[int]:
            return await asyncio.gather(*(calls_app.double.remote.aio(n) for n in range(start, start + 30)))

        return asyncio.run(main())

    with ThreadPoolExecutor(16) as pool:
        results = [pool.submit(in_loop if n % 3 == 0 else in_thread, 100 * n) for n in range(24)]
        for n, result in enumerate(results):
            assert result.result(60) == [2 * x for x in range(100 * n, 100 * n + 30)]


def test_calls_in_a_forked_child(connected: "Installation", program: Callable[[str], Path]) -> None:
    """A program's own fork and multiprocessing go on working: parent and children all call, and the app is the
    parent's to stop."""
    path = program("""
        import multiprocessing, os, sys
        import farcall

        app = farcall.App("forks")

        @app.function()
        def double(x):
            return 2 * x

        def in_child(x):
            return double.remote(x)

        if __name__ == "__main__":
            with app.run():
                print(double.remote(1), flush=True)
                with multiprocessing.get_context("fork").Pool(2) as pool:
                    print(pool.map(in_child, range(4)), flush=True)
                if (pid := os.fork()) == 0:
                    sys.exit(0)
                os.waitpid(pid, 0)
                print(double.remote(5))
    """)
    assert run_program(connected, path).stdout == "2\n[0, 2, 4, 6]\n10\n"


def test_no_thread_starts_at_import() -> None:
    """Importing farcall, declaring an app and calling a function start no thread."""
    code = "import threading, farcall; app = farcall.App(); app.function(serialized=True)(print); "
    code += "print(threading.active_count(), 'asyncio' in __import__('sys').modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1 False\n"


def test_local_runs_here() -> None:
    """f.local(x) runs in the caller's process; f.remote(x) in another, below a pid 1 of its own."""
    assert calls_app.where.local() == (calls_app.IDENTITY, True, os.getppid())
    identity, is_local, parent = calls_app.where.remote()
    assert identity != calls_app.IDENTITY
    assert not is_local
    assert parent == 1


def test_calling_a_function_itself_is_an_error_that_names_both_ways() -> None:
    """f(x) on a decorated function is an error that names .remote and .local."""
    with pytest.raises(errors.InvalidError, match=r"double\.remote\(.*double\.local\("):
        calls_app.double(1)


def test_ids_of_call_and_input() -> None:
    """In a container the call's and the input's ids are there; outside there are none."""
    call_id, input_id = calls_app.ids.remote()
    assert call_id is not None
    assert call_id.startswith("fc-")
    assert input_id is not None
    assert input_id.startswith("in-")
    call = calls_app.ids.spawn()
    assert call.get(timeout=20)[0] == call.object_id
    assert calls_app.ids.local() == (None, None)


def test_remote_and_remote_gen_are_not_interchangeable() -> None:
    """f.remote on a generator function and f.remote_gen on a plain one are InvalidErrors naming the right method."""
    with pytest.raises(errors.InvalidError, match=r"count\.remote_gen\("):
        calls_app.count.remote(3)
    with pytest.raises(errors.InvalidError, match=r"double\.remote\("):
        list(calls_app.double.remote_gen(3))


def test_wrong_arguments_are_the_functions_own_type_error() -> None:
    """Wrong arguments are the TypeError that Python makes of them, naming the function and the argument."""
    with pytest.raises(TypeError, match=r"double\(\) missing 1 required positional argument: 'x'"):
        calls_app.double.remote()
    with pytest.raises(TypeError, match=r"double\(\) got an unexpected keyword argument 'y'"):
        calls_app.double.remote(1, y=2)


def test_a_call_without_a_running_app_is_an_error() -> None:
    """A function whose app does not run cannot be called, and the error shows how to run it."""
    other = farcall.App("other")
    function = other.function()(calls_app.double.raw)
    with pytest.raises(errors.InvalidError, match=r"with app\.run\(\)"):
        function.remote(1)


# --- spawn


def test_spawn_and_get() -> None:
    """f.spawn(x) returns a FunctionCall; .get waits, .get(timeout=0) polls and raises the builtin TimeoutError."""
    door = calls_app.Door()
    call = door.wait.spawn("waited")
    assert isinstance(call, farcall.FunctionCall)
    with pytest.raises(TimeoutError, match=call.object_id):
        call.get(timeout=0)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=call.object_id):
        call.get(timeout=0.2)
    assert time.monotonic() - began > 0.19  # the server counts milliseconds
    door.open.remote()
    assert call.get() == "waited"
    assert call.get(timeout=0) == "waited"


def test_a_spawned_calls_exception() -> None:
    """.get raises what the function raised, each time it is asked."""
    call = calls_app.fail.spawn("no")
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            call.get(timeout=20)


def test_large_values_through_spawn() -> None:
    """Spawned values have no size limit either."""
    data = os.urandom(3_000_000)
    assert calls_app.sleep.spawn(0, data).get(timeout=20) == data


def test_from_id() -> None:
    """FunctionCall.from_id makes the handle again; an unknown id is a NotFoundError, a wrong one an InvalidError."""
    call = farcall.FunctionCall.from_id(calls_app.double.spawn(5).object_id)
    assert call.get(timeout=20) == 10
    assert call.get(timeout=0) == 10
    with pytest.raises(errors.NotFoundError, match="fc-00000000000000000000"):
        farcall.FunctionCall.from_id("fc-00000000000000000000").get(timeout=5)
    with pytest.raises(errors.InvalidError, match="fc-"):
        farcall.FunctionCall.from_id("something")


def test_get_from_another_process(connected: "Installation") -> None:
    """Another process gets the result by the call's id."""
    call = calls_app.double.spawn(21)
    program = f"import farcall; print(farcall.FunctionCall.from_id({call.object_id!r}).get(timeout=20))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=connected.environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "42\n", done.stderr


def test_gather() -> None:
    """FunctionCall.gather keeps the order and raises the first failure."""
    calls = [calls_app.sleep.spawn(0.3, "slow"), calls_app.sleep.spawn(0, "quick")]
    assert farcall.FunctionCall.gather(*calls) == ["slow", "quick"]
    with pytest.raises(ValueError, match="broken"):
        farcall.FunctionCall.gather(calls[0], calls_app.fail.spawn("broken"), calls[1])
    assert farcall.FunctionCall.gather() == []


def test_gather_raises_without_waiting_for_the_others() -> None:
    """The first failure is raised when it is there, not when the calls named before it have ended."""
    slow = calls_app.Gate().hold.spawn()
    with pytest.raises(ValueError, match="at once"):
        farcall.FunctionCall.gather(slow, calls_app.fail.spawn("at once"))
    slow.cancel()


def test_cancel_of_a_spawned_call() -> None:
    """.cancel() ends a spawned call, running or waiting: .get raises InputCancelledError; the container serves on."""
    gate = calls_app.Gate()
    identity = gate.identity.remote()
    call = gate.hold.spawn()
    waiting = gate.hold.spawn()
    call.cancel()
    waiting.cancel()
    for one in (call, waiting):
        with pytest.raises(errors.InputCancelledError, match="cancel"):
            one.get(timeout=20)
    assert gate.identity.remote() == identity


def test_cancel_with_termination() -> None:
    """.cancel(terminate_containers=True) ends the container, too."""
    gate = calls_app.Gate()
    identity = gate.identity.remote()
    call = gate.hold.spawn()
    until_it_says(call.object_id)
    call.cancel(terminate_containers=True)
    with pytest.raises(errors.InputCancelledError):
        call.get(timeout=20)
    assert gate.identity.remote() != identity


# --- servers that end

SPAWNER = """
import farcall, os, sys, time

app = farcall.App("spawner")


@app.function(timeout=60)
def slowly(x):
    time.sleep(0.5)
    return x + 1


if __name__ == "__main__":
    with app.run(detach=True):
        print(*(slowly.spawn(n).object_id for n in range(4)), flush=True)
"""


def test_a_spawned_call_survives_a_killed_server(installation: "Installation", program: Callable[[str], Path]) -> None:
    """Durable once spawn has returned: a kill -9 of the server right after loses nothing; each call gets its result."""
    path = program(SPAWNER)
    done = run_program(installation, path)
    call_ids = done.stdout.split()
    assert len(call_ids) == 4, done.stderr
    os.kill(server_pid(installation), 9)
    getter = "import farcall, sys; print(*(farcall.FunctionCall.from_id(i).get(timeout=30) for i in sys.argv[1:]))"
    got = run_program(installation, "-c", getter, *call_ids)
    assert got.stdout.split() == ["1", "2", "3", "4"], got.stderr


RECORDED = """
import farcall, os

app = farcall.App("recorded")


@app.function()
def draw():
    return os.urandom(8).hex()


if __name__ == "__main__":
    with app.run(detach=True):
        call = draw.spawn()
        print(call.object_id, call.get(), flush=True)
"""


def test_a_recorded_result_is_never_computed_again(
    installation: "Installation", program: Callable[[str], Path]
) -> None:
    """An input whose result was recorded is never executed again, whatever becomes of the server."""
    call_id, drawn = run_program(installation, program(RECORDED)).stdout.split()
    getter = f"import farcall; print(farcall.FunctionCall.from_id({call_id!r}).get(timeout=20))"
    for _ in range(2):
        os.kill(server_pid(installation), 9)
        assert run_program(installation, "-c", getter).stdout.split() == [drawn]


LOSER = """
import farcall, os, signal, sys, time
from farcall import errors

app = farcall.App("loser")


@app.function()
def wait():
    print("it runs", flush=True)
    time.sleep(60)


if __name__ == "__main__":
    with farcall.enable_output(), app.run():
        try:
            wait.remote()
        except errors.ConnectionLostError as error:
            print("lost", error.may_have_run, error, flush=True)
"""


def test_a_lost_connection_says_whether_the_call_may_have_run(
    installation: "Installation", program: Callable[[str], Path]
) -> None:
    """After a lost connection the caller of .remote sees ConnectionLostError that says that the call may have run."""
    process = subprocess.Popen(
        [sys.executable, program(LOSER)], env=installation.environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "it runs\n"
    os.kill(server_pid(installation), 9)
    said = process.stdout.read()
    assert process.wait(30) == 0
    assert said.startswith("lost True")
    assert "may have run" in said
    assert "fc-" in said


EXPIRING = """
import farcall, sqlite3, sys

app = farcall.App("expiring")


@app.function()
def one():
    return 1


if __name__ == "__main__":
    with app.run(detach=True):
        call = one.spawn()
        call.get()
        print(call.object_id)
"""


# The server looks for what has expired a few seconds after its start.
EXPIRED = """
import farcall, sys, time
while True:
    try:
        farcall.FunctionCall.from_id(sys.argv[1]).get(timeout=0)
    except farcall.errors.OutputExpiredError as error:
        print(isinstance(error, TimeoutError), error)
        break
    time.sleep(0.1)
"""


def test_results_expire_after_a_week(installation: "Installation", program: Callable[[str], Path]) -> None:
    """Results are kept 7 days, then OutputExpiredError, which is a TimeoutError and says so."""
    call_id = run_program(installation, program(EXPIRING)).stdout.strip()
    installation.farcall("server", "stop")
    import sqlite3

    [database] = [path for path in installation.root.rglob("*.db") if "state" in str(path)]
    week = 7 * 24 * 3600
    with sqlite3.connect(database) as connection:
        for column in ("created_at", "finished_at"):
            connection.execute(f"UPDATE calls SET {column} = {column} - ?", (week + 60,))
        connection.execute("UPDATE outputs SET finished_at = finished_at - ?", (week + 60,))
    said = run_program(installation, "-c", EXPIRED, call_id).stdout
    assert said.startswith("True")
    assert call_id in said
    assert "results_kept" in said


def test_how_long_results_are_kept_is_a_setting(installation: "Installation", program: Callable[[str], Path]) -> None:
    """`results_kept` of the project of whichever program starts the server."""
    call_id = run_program(installation, program(EXPIRING)).stdout.strip()
    assert (
        "results_kept must be a time"
        in installation.farcall("server", "start", "--results-kept", "7", check=False).stderr
    )
    installation.farcall("server", "stop")
    asks = program(EXPIRED)
    (asks.parent / "pyproject.toml").write_text('[tool.farcall]\nresults_kept = "1s"\n')
    assert call_id in run_program(installation, asks, call_id).stdout


def server_pid(installation: "Installation") -> int:
    """The process that serves there now."""
    program = "from farcall.sdk import client; print(client.connect_existing().status().pid)"
    return int(run_program(installation, "-c", program).stdout)


def run_program(installation: "Installation", *arguments: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=installation.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done


# --- declarations


def test_closures_and_lambdas_need_serialized() -> None:
    """Decorating a closure or lambda without serialized=True is an error at decoration time that says so."""
    other = farcall.App("closures")

    def closure() -> None: ...

    with pytest.raises(errors.InvalidError, match="serialized=True"):
        other.function()(closure)
    with pytest.raises(errors.InvalidError, match="serialized=True"):
        other.function()(lambda x: x)


def test_serialized_functions_run() -> None:
    """With serialized=True closures, lambdas and classes defined in a function run, with what they refer to."""
    assert calls_app.by_value.remote(1) == 8
    other = farcall.App("serialized")
    offset = 100

    def helper(x: int) -> int:
        return x + offset

    @other.function(serialized=True)
    def closure(x: int) -> int:
        return helper(x)

    unnamed = other.function(serialized=True, name="unnamed")(lambda x: x * offset)

    @other.cls(serialized=True)
    class Local:
        @farcall.enter()
        def begin(self) -> None:
            self.base = offset

        @farcall.method()
        def add(self, x: int) -> int:
            return self.base + x

    with other.run():
        assert closure.remote(1) == 101
        assert unnamed.remote(2) == 200
        assert Local().add.remote(3) == 103


def test_a_duplicate_name_warns_and_the_last_wins() -> None:
    """A duplicate function name in an app warns; the last wins."""
    other = farcall.App("twice")
    other.function(serialized=True, name="same")(lambda: "first")
    with pytest.warns(errors.FarcallWarning, match="two functions named same"):
        other.function(serialized=True, name="same")(lambda: "second")
    with other.run():
        assert other.registered_functions["same"].remote() == "second"
