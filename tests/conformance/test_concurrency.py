"""Semantics: several inputs in one container at once, batches, and containers for one input only."""

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import concurrency_app
import pytest
from concurrency_app import app  # noqa: F401 - the fixture runs it

import farcall
from farcall import errors
from tests.conformance.conftest import until_it_says

if TYPE_CHECKING:
    from tests.conftest import Installation


def cancelled(call: Any) -> bool:
    with pytest.raises(errors.InputCancelledError):
        call.get(timeout=20)
    return True


# --- @concurrent


@pytest.mark.parametrize(
    ("function", "threads"), [(concurrency_app.meet, 8), (concurrency_app.meet_later, 1)], ids=["sync", "async"]
)
def test_inputs_run_at_once(function: Any, threads: int) -> None:
    """@concurrent(max_inputs): async functions as tasks on one loop, sync functions as threads; each input knows its
    own id."""
    calls = [function.spawn(8) for _ in range(8)]
    outcomes = farcall.FunctionCall.gather(*calls)
    assert len({identity for identity, *_ in outcomes}) == 1
    assert all(met for _, met, *_ in outcomes)
    assert [name for _, _, name, _ in outcomes] == [f"in-{call.object_id.removeprefix('fc-')}-0" for call in calls]
    assert len({thread for *_, thread in outcomes}) == threads


@pytest.mark.parametrize("method", ["plain", "later"])
def test_never_more_than_max_inputs(method: str) -> None:
    """A class's container runs up to max_inputs of its methods' inputs at once, and never more."""
    counted = concurrency_app.Counted()
    identities = set(getattr(counted, method).map([0.02] * 40))
    assert counted.report.remote() == (*identities, 4)


def test_generators_at_once() -> None:
    """Generators run at once too, and one that is abandoned does not disturb the others."""
    counted = concurrency_app.Counted()

    async def main() -> list[Any]:
        async def items(n: int, few: int | None = None) -> list[int]:
            found: list[int] = []
            async for item in counted.count.remote_gen.aio(n):
                found.append(item)
                if len(found) == few:
                    break
            return found

        return await asyncio.gather(items(20), items(10_000, 3), items(30))

    identity, _ = counted.report.remote()
    assert asyncio.run(main()) == [list(range(20)), list(range(3)), list(range(30))]
    assert counted.report.remote()[0] == identity


def test_output_of_each_input(connected: "Installation") -> None:
    """What inputs print at the same time is kept apart, line by line, and belongs to its own call."""
    calls = [concurrency_app.printing.spawn(name) for name in "abcd"]
    farcall.FunctionCall.gather(*calls)
    for name, call in zip("abcd", calls, strict=True):
        kept = connected.farcall("logs", call.object_id).stdout
        assert re.findall(r"one \w end \w|two \w end \w", kept) == [f"one {name} end {name}", f"two {name} end {name}"]


def test_an_input_may_call_its_own_container() -> None:
    """With room left for it, a nested call runs in the container of its caller."""
    assert len(set(concurrency_app.itself.remote(3))) == 1


def test_a_blocked_loop_holds_up_nobody_else() -> None:
    """Inputs handed to a container whose loop is blocked by one of its inputs go to another one."""
    first = concurrency_app.hold_up.remote()
    blocking = concurrency_app.hold_up.spawn("blocked loop")
    until_it_says(blocking.object_id)
    assert concurrency_app.hold_up.remote() != first
    with pytest.raises(TimeoutError):
        blocking.get(timeout=0)
    concurrency_app.Door(name="blocked loop").open.remote()
    assert blocking.get(timeout=20) == first


# --- stopping


def test_cancelling_a_task_leaves_the_others() -> None:
    """Cancelling an async input cancels its task; those beside it and the container go on."""
    tasks = concurrency_app.Tasks()
    identity = tasks.nap.remote(0)
    gone, other = tasks.block.spawn("gone"), tasks.nap.spawn(1.0)
    until_it_says(gone.object_id)
    gone.cancel()
    assert cancelled(gone)
    assert other.get(timeout=20) == identity
    same, events = tasks.report.remote()
    assert same == identity
    assert [event for event in events if event.startswith("gone")] == ["gone started", "gone cancelled"]


def test_cancelling_an_input_among_threads_replaces_the_container() -> None:
    """A sync input among concurrent threads has its container replaced and the other inputs rescheduled."""
    threads = concurrency_app.Threads()
    before = threads.identity.remote()
    gone, other = threads.hold.spawn(), threads.hold.spawn(before)
    for call in (gone, other):
        until_it_says(call.object_id)
    gone.cancel()
    assert cancelled(gone)
    assert other.get(timeout=40) != before


def test_a_cancelled_input_that_ends_in_time_costs_no_container() -> None:
    """An input among threads that ends soon after its cancellation leaves all as it was."""
    threads = concurrency_app.Threads()
    before = threads.identity.remote()
    gone, other = threads.hold.spawn(), threads.hold.spawn()
    for call in (gone, other):
        until_it_says(call.object_id)
    door = concurrency_app.Door(name="threads")
    threads.let_go_behind.remote(door.name)  # a container that waits for the end of one takes no other
    gone.cancel()
    door.open.remote()
    assert cancelled(gone)
    assert other.get(timeout=20) == before
    assert threads.identity.remote() == before


def test_timeouts_are_each_input_s_own() -> None:
    """`timeout` counts from the start of each input. A task that runs too long is cancelled; for a thread the container
    is replaced, and those beside it run again."""
    identity = concurrency_app.timed_tasks.remote(0)
    late, early = concurrency_app.timed_tasks.spawn(30), concurrency_app.timed_tasks.spawn(0)
    with pytest.raises(errors.FunctionTimeoutError, match="timed_tasks ran longer than its timeout of 1 s"):
        late.get(timeout=20)
    assert early.get(timeout=20) == identity
    assert concurrency_app.timed_tasks.remote(0) == identity

    identity = concurrency_app.timed_threads.remote(0)
    late, early = concurrency_app.timed_threads.spawn(30), concurrency_app.timed_threads.spawn(0)
    with pytest.raises(errors.FunctionTimeoutError, match="timed_threads ran longer than its timeout of 1 s"):
        late.get(timeout=20)
    assert early.get(timeout=20)
    assert concurrency_app.timed_threads.remote(0) != identity


def test_a_crash_fails_all_that_ran() -> None:
    """A container that an input brings down fails, and spends the retries of, all inputs that had started in it."""
    results: list[Any] = list(concurrency_app.crash_together.map([True, False], return_exceptions=True))
    for result in results:
        assert isinstance(result, errors.ContainerCrashedError)
        assert "exited with code 5" in str(result)
        assert result.__notes__ == ["after 3 attempts"]


# --- @batched


def test_batches_form_across_callers() -> None:
    """Callers pass single items; the function gets lists, whoever called, and each caller has its own result."""
    calls = [concurrency_app.full_batch.spawn(x, ys=10) for x in range(2)]
    mapped = concurrency_app.full_batch.map([2, 3], kwargs={"ys": 10})
    assert [total for total, *_ in mapped] == [12, 13]
    outcomes = farcall.FunctionCall.gather(*calls)
    assert [total for total, *_ in outcomes] == [10, 11]
    assert outcomes[0][1:] == outcomes[1][1:]
    assert set(outcomes[0][1]) == {0, 1, 2, 3}
    assert outcomes[0][2].startswith("in-")


def test_a_batch_waits_for_more_and_not_for_ever() -> None:
    """A batch that is full runs at once; one that is not runs when its first item has waited wait_ms."""
    began = time.monotonic()
    outcomes = list(concurrency_app.full_batch.map(range(8), range(8)))
    assert time.monotonic() - began < 20
    assert [len(xs) for _, xs, _ in outcomes] == [4] * 8
    concurrency_app.batch.remote(0, 0)
    began = time.monotonic()
    assert concurrency_app.batch.remote(1, 1)[:2] == (2, [1])
    assert time.monotonic() - began > 0.29  # the server counts milliseconds


def test_batches_of_async_functions_and_methods() -> None:
    """Asynchronous functions and methods of classes are batched alike."""
    assert list(concurrency_app.batch_later.map(range(4))) == [(x, 4) for x in range(4)]
    outcomes = list(concurrency_app.Batched().run.map(range(6)))
    assert [x for x, _ in outcomes] == list(range(6))
    assert outcomes[-1][1] == [3, 3]


def test_batches_at_once() -> None:
    """@concurrent over @batched: so many batches at once."""
    assert all(concurrency_app.batches_at_once.map(range(6)))


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("short", "wrong is @farcall.batched, was given 3 items and returned a list of 2"),
        ("long", "wrong is @farcall.batched, was given 3 items and returned a list of 4"),
        ("none", "wrong is @farcall.batched and returned a NoneType; it must return a list"),
        ("dict", "wrong is @farcall.batched and returned a dict; it must return a list"),
    ],
)
def test_a_wrong_result_fails_the_batch(kind: str, match: str) -> None:
    """A wrong length or type fails the batch with an error that says so; the next one is served."""
    results: list[Any] = list(concurrency_app.wrong.map([kind, "b", "c"], return_exceptions=True))
    assert [type(result) for result in results] == [errors.InvalidError] * 3
    assert {re.match(match, str(result)) is not None for result in results} == {True}
    assert concurrency_app.wrong.remote("right") == "right"


def test_an_exception_is_that_of_each_input() -> None:
    """An exception of the function is raised in each caller; arguments that do not fit fail their own call only."""
    results: list[Any] = list(concurrency_app.wrong.map(["raise", "b"], return_exceptions=True))
    assert [(type(result), result.args) for result in results] == [(KeyError, ("raise", "b"))] * 2
    good, bad = concurrency_app.wrong.spawn("good"), concurrency_app.wrong.spawn("a", "b")
    with pytest.raises(TypeError, match=r"wrong\(\) takes 1 arguments for each item but 2 were given"):
        bad.get(timeout=20)
    assert good.get(timeout=20) == "good"


def test_inputs_of_a_failed_batch_are_retried() -> None:
    """Each input of a batch that failed spends one of its own retries."""
    assert list(concurrency_app.fail_at_first.map(range(3))) == [(x, 3) for x in range(3)]


def test_cancelling_inputs_of_a_batch() -> None:
    """An input that is cancelled leaves its batch; one that runs is stopped when all of it is cancelled."""
    slow = concurrency_app.SlowBatches()
    nothing = [0, 0, 0]
    list(slow.run.map(nothing))
    one, two, three = (slow.run.spawn(item) for item in ("batch", 1, 2))
    until_it_says(one.object_id)
    two.cancel()
    assert cancelled(two)
    concurrency_app.Door(name="batch").open.remote()
    assert one.get(timeout=20) == three.get(timeout=20) == [nothing]
    assert list(slow.run.map(nothing)) == [[["batch", 1, 2]]] * 3

    running = [slow.run.spawn(seconds) for seconds in (60, 61, 62)]
    until_it_says(running[0].object_id)
    behind, beside = slow.run.spawn(63), [slow.run.spawn(0) for _ in range(2)]
    behind.cancel()
    for call in running:
        call.cancel()
    assert all(cancelled(call) for call in (*running, behind))
    beside.append(slow.run.spawn(0))
    assert [call.get(timeout=20) for call in beside] == [[[60, 61, 62], "InputCancellation"]] * 3
    assert list(slow.run.map(nothing)) == [[nothing]] * 3


def test_a_batch_times_out() -> None:
    """`timeout` is that of the batch: all of it fails, and the container goes on where the code lets itself be
    stopped."""
    identity = concurrency_app.timed_batch.remote(0)
    results = list(concurrency_app.timed_batch.map([30, 0], return_exceptions=True))
    assert [type(result) for result in results] == [errors.FunctionTimeoutError] * 2
    assert concurrency_app.timed_batch.remote(0) == identity


def test_a_caller_hears_what_its_batch_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waits for its batch to fill says so."""
    from farcall.sdk import output

    heard: list[str | None] = []
    monkeypatch.setattr(output, "call_waits", lambda call_id, name, reason: heard.append(reason))
    list(concurrency_app.patient.map(range(10)))

    async def main() -> None:
        tasks = [asyncio.create_task(concurrency_app.patient.remote.aio(x)) for x in range(3)]
        while not any(reason and "batch" in reason for reason in heard):
            done, _ = await asyncio.wait(tasks, timeout=0.1)
            assert not done
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(asyncio.wait_for(main(), 19))
    assert "its batch has 3 of 10 items, and waits 20 s for more" in heard


# --- single_use_containers


@pytest.mark.parametrize(
    "function",
    [
        concurrency_app.single_use_later,
        concurrency_app.SingleUse().plain,
        concurrency_app.SingleUse().later,
    ],
    ids=["async", "method", "async method"],
)
def test_single_use_containers(function: Any) -> None:
    """single_use_containers: each input has a container of its own, for functions and classes, sync and async."""
    calls = [function.spawn() for _ in range(3)]
    assert len({*farcall.FunctionCall.gather(*calls), function.remote(), function.remote()}) == 5


def test_retries_in_single_use_containers() -> None:
    """Each attempt has a container of its own."""
    with pytest.raises(ValueError, match="input 1 of this container") as caught:
        concurrency_app.single_use_fails.remote()
    assert caught.value.__notes__ == ["after 3 attempts"]


def test_exit_hooks_of_single_use_containers(connected: "Installation", program: Callable[[str], Path]) -> None:
    """The exit hooks of a container for one input run when it has been served."""
    path = program("""
        import farcall

        app = farcall.App("once")

        @app.cls(single_use_containers=True)
        class Once:
            @farcall.enter()
            def begin(self):
                print("enter", flush=True)

            @farcall.method()
            def work(self, x):
                print("work", x, flush=True)

            @farcall.exit()
            def end(self):
                print("exit", flush=True)

        if __name__ == "__main__":
            with farcall.enable_output(), app.run():
                for x in range(2):
                    Once().work.remote(x)
    """)
    done = subprocess.run(
        [sys.executable, str(path)], env=connected.environment, capture_output=True, text=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert sorted(lines) == sorted(["enter", "work 0", "exit", "enter", "work 1", "exit"]), done.stderr
