"""Semantics: retries, timeouts, cancellation."""

import asyncio
import itertools
import signal
import threading
import time
from typing import Any

import pytest
import retries_app
from retries_app import app

import farcall
from farcall import errors
from farcall.sdk import client as clients
from tests.conformance.conftest import until_it_says

# --- retries


def test_retries_are_a_second_apart() -> None:
    """retries=n: n retries with a fixed 1 s delay."""
    attempts, pauses = retries_app.fail_times.remote(2)
    assert attempts == 3
    assert all(0.99 <= pause < 20 for pause in pauses), pauses  # the server counts milliseconds


def test_max_delay_caps() -> None:
    """Retries: delays grow by the coefficient, may be under 1 s, and max_delay really caps."""
    attempts, pauses = retries_app.fail_with_backoff.remote(4)
    assert attempts == 5
    assert pauses[0] >= 0.09  # the server counts milliseconds
    assert all(0.29 <= pause < 20 for pause in pauses[1:]), pauses  # without the cap the last two would be 60 s


def test_the_last_failure_is_raised() -> None:
    """When the budget is spent, the last attempt's exception is raised, and says how many there were."""
    with pytest.raises(ValueError, match="attempt 4") as caught:
        retries_app.always_fail.remote()
    assert caught.value.__notes__ == ["after 4 attempts"]


@pytest.fixture
def retry_lines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The log lines that tell of retries, as this process hears of them."""
    from farcall.sdk import output

    lines: list[Any] = []
    monkeypatch.setattr(
        output, "listener", lambda event: lines.append(event) if "; again in" in getattr(event, "text", "") else None
    )
    return lines


def test_a_retry_is_told(retry_lines: list[Any]) -> None:
    """A failed attempt that is repeated leaves a line in the log: which of how many, and when it is repeated."""
    told = farcall.App("told")
    fail = told.function(retries=farcall.Retries(max_retries=2, initial_delay=0.0))(retries_app.always_fail.raw)
    with told.run(), pytest.raises(ValueError, match="attempt"):
        fail.remote()
    assert [line.text for line in retry_lines] == [
        "attempt 1 of 3 failed; again in 0 s\n",
        "attempt 2 of 3 failed; again in 0 s\n",
    ]
    assert {line.stream for line in retry_lines} == {"system"}


def test_thousands_of_retries_are_told_in_few_lines(retry_lines: list[Any]) -> None:
    """A map whose inputs all fail does not drown the log."""
    drowning = farcall.App("drowning")
    policy = farcall.Retries(max_retries=1, initial_delay=0.0)
    fail = drowning.function(retries=policy)(retries_app.fail_on.raw)
    began = time.monotonic()
    with drowning.run():
        results = list(fail.map(range(1000), return_exceptions=True))
    assert {type(result) for result in results} == {ValueError}
    assert 1 <= len(retry_lines) <= 3 * (time.monotonic() - began + 1)


def test_retries_of_spawned_calls_and_maps() -> None:
    """Inputs of spawned calls and of maps are retried alike."""
    with pytest.raises(ValueError, match=r"attempt \d"):
        retries_app.always_fail.spawn().get(timeout=20)
    results = list(retries_app.fail_with_backoff.map([1, 0], return_exceptions=True))
    assert {type(result) for result in results} == {tuple}


def test_a_crash_spends_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that the function itself brought down consumes the retry budget: one retry, two containers."""
    from farcall.sdk import output

    ends: list[str] = []
    monkeypatch.setattr(
        output, "listener", lambda event: ends.append(event.text) if "exited with" in getattr(event, "text", "") else 0
    )
    crashing = farcall.App("crashing")
    crash = crashing.function(retries=farcall.Retries(max_retries=1, initial_delay=0.0))(retries_app.crash.raw)
    with crashing.run(), pytest.raises(errors.ContainerCrashedError, match="exited with code 4"):
        crash.remote()
    assert len(ends) == 2


def test_a_timeout_spends_the_budget() -> None:
    """A timeout consumes the retry budget, and `timeout` is per attempt."""
    began = time.monotonic()
    assert retries_app.too_slow_at_first.remote() == 3
    assert 1.99 <= time.monotonic() - began < 30


def test_bounds_of_retries() -> None:
    """Values outside their range are refused at once, saying which."""
    for wrong in (
        {"max_retries": -1},
        {"max_retries": 1, "backoff_coefficient": 0.5},
        {"max_retries": 1, "max_delay": 0},
        {"max_retries": 1, "initial_delay": 61},
    ):
        with pytest.raises(errors.InvalidError, match=list(wrong)[-1]):
            farcall.Retries(**wrong)  # type: ignore[arg-type]


# --- timeouts


@pytest.mark.parametrize("function", [retries_app.sleep, retries_app.sleep_later], ids=["sync", "async"])
def test_timeout(function: Any) -> None:
    """`timeout` raises FunctionTimeoutError, which is a TimeoutError, after that many seconds."""
    assert function.remote(0) == "slept"
    began = time.monotonic()
    with pytest.raises(errors.FunctionTimeoutError, match=rf"{function.name} ran longer than .* 1 s") as caught:
        function.remote(30)
    assert isinstance(caught.value, TimeoutError)
    assert 0.99 <= time.monotonic() - began < 25
    assert function.remote(0) == "slept"


def test_timeout_of_code_that_does_not_stop() -> None:
    """Code that ignores being stopped has its container replaced, and is a FunctionTimeoutError all the same."""
    began = time.monotonic()
    with pytest.raises(errors.FunctionTimeoutError, match="stubborn"):
        retries_app.stubborn.remote(60)
    assert time.monotonic() - began < 40


def test_startup_timeout_bounds_import_and_enter_hooks() -> None:
    """`startup_timeout` bounds import and enter hooks, separately from `timeout`."""
    began = time.monotonic()
    with pytest.raises(errors.StartupTimeoutError, match=r"SlowStart.*1 s"):
        retries_app.SlowStart().anything.remote()
    assert time.monotonic() - began < 25
    assert retries_app.SlowStartAllowed().anything.remote() == "done"


@pytest.mark.parametrize("seconds", [0.5, 90_000, -1, "10", None])
def test_bounds_of_timeout(seconds: Any) -> None:
    """`timeout` is 1 s to 24 h; anything else is refused at once."""
    with pytest.raises(errors.InvalidError, match="timeout"):
        farcall.App("wrong").function(timeout=seconds)


# --- cancellation


@pytest.fixture
def cancelled() -> Any:
    """The class whose inputs are cancelled, its container warm and its record empty."""
    instance = retries_app.Cancelled()
    instance.report.remote()
    return instance


@pytest.mark.parametrize(
    ("method", "events"),
    [
        ("block", ["started", "InputCancellation", "finally"]),
        ("block_in_call", ["started", "InputCancellation"]),
        ("spin", ["started"]),
        ("block_later", ["started", "CancelledError"]),
    ],
)
def test_cancelling_an_input_that_runs(cancelled: Any, method: str, events: list[str]) -> None:
    """A sync input gets InputCancellation, a BaseException, raised in it, also in its own waiting for a call; an async
    input's task is cancelled. The container lives on."""
    before, _ = cancelled.report.remote()
    call = getattr(cancelled, method).spawn()
    until_it_says(call.object_id)
    call.cancel()
    with pytest.raises(errors.InputCancelledError):
        call.get(timeout=20)
    after, seen = cancelled.report.remote()
    assert after == before
    assert seen == events


def test_cancelling_an_input_that_waits(cancelled: Any) -> None:
    """An input that has not started never does; those beside it run."""
    first = cancelled.block.spawn()
    until_it_says(first.object_id)
    waiting, other = cancelled.block.spawn(), cancelled.quick.spawn("other")
    waiting.cancel()
    with pytest.raises(errors.InputCancelledError):
        waiting.get(timeout=20)
    first.cancel()
    assert other.get(timeout=20) == "other"
    assert cancelled.report.remote()[1] == ["started", "InputCancellation", "finally"]


def test_a_sync_input_that_ignores_its_cancellation(cancelled: Any) -> None:
    """A sync input that ignores it has its container replaced, and the other inputs are rescheduled."""
    before, _ = cancelled.report.remote()
    call = cancelled.ignore.spawn()
    until_it_says(call.object_id)
    others = [cancelled.quick.spawn(n) for n in range(3)]
    began = time.monotonic()
    call.cancel()
    with pytest.raises(errors.InputCancelledError):
        call.get(timeout=20)
    assert farcall.FunctionCall.gather(*others) == [0, 1, 2]
    assert time.monotonic() - began < 40
    assert cancelled.report.remote()[0] != before


def test_a_cancelled_task_cancels_its_call(cancelled: Any) -> None:
    """Cancelling the task that awaits .remote.aio cancels the input."""
    app_id = app.app_id
    assert app_id is not None

    async def main() -> None:
        task = asyncio.create_task(cancelled.block.remote.aio("a task's"))
        await asyncio.to_thread(until_it_says, app_id, "a task's")
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert cancelled.report.remote()[1] == ["started", "InputCancellation", "finally"]


def test_an_interrupted_caller_cancels_its_call(cancelled: Any) -> None:
    """A KeyboardInterrupt while .remote waits cancels the input."""
    app_id = app.app_id
    assert app_id is not None

    def interrupt() -> None:
        until_it_says(app_id, "an interrupted caller's")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        cancelled.block.remote("an interrupted caller's")
    interrupting.join()
    assert cancelled.report.remote()[1] == ["started", "InputCancellation", "finally"]


def test_an_interrupt_as_soon_as_an_input_has_been_sent(cancelled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyboardInterrupt between the sending of an input and the waiting for its result cancels it, too."""
    app_id = app.app_id
    assert app_id is not None
    connection = clients.current().connection
    send = connection.send

    def interrupted(message: Any, fds: Any = ()) -> None:
        monkeypatch.undo()
        send(message, fds)
        until_it_says(app_id, "sent")
        raise KeyboardInterrupt

    monkeypatch.setattr(connection, "send", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cancelled.block.remote("sent")
    assert cancelled.report.remote()[1] == ["started", "InputCancellation", "finally"]


def test_inputs_after_many_cancellations(cancelled: Any) -> None:
    """Maps that are broken off, one after the other, leave a container that serves."""
    for _ in range(10):
        assert list(itertools.islice(cancelled.quick.map(range(100)), 3)) == [0, 1, 2]
    assert cancelled.quick.remote("still") == "still"
