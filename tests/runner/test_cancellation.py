"""Stopping inputs: running and waiting ones, by cancellation and by time."""

import os
import signal

import pytest

from farcall.wire import messages
from farcall.wire.page import SharedPage

from .conftest import MAY_GO, PlatformError, Worker

BUSY = {
    "sleep": "time.sleep(600)",
    "compute": "while True: pass",
    "lock": "threading.Lock().__enter__(); lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "print": "while True: print('x' * 1000)",
    "swallowed": "\n        try: time.sleep(600)\n        except BaseException: return 'swallowed'",
    "other": "\n        try: time.sleep(600)\n        finally: raise ValueError",
}


@pytest.mark.parametrize("busy", list(BUSY))
@pytest.mark.parametrize(
    ("reason", "expected"), [(SharedPage.CANCELLED, "input-cancelled"), (SharedPage.TIMED_OUT, "function-timeout")]
)
def test_a_running_function_is_stopped(worker: Worker, busy: str, reason: int, expected: str) -> None:
    worker.load(f"import threading, time\ndef f(x):\n    if x:\n        {BUSY[busy]}\n    return 'fine'\n")
    (seq,) = worker.run((1,))
    worker.wait_running(seq)
    worker.cancel(seq, reason)
    with pytest.raises(PlatformError) as caught:
        worker.outcome(seq)
    assert caught.value.failure.code == expected
    assert caught.value.failure.call_id == "fc-1"
    assert caught.value.failure.container_id == "ta-test"
    assert worker.call(0) == "fine"


def test_the_exception_is_no_exception_and_finally_blocks_run(worker: Worker) -> None:
    worker.load("""
        import time
        from farcall.errors import InputCancellation
        seen = []
        def f(x):
            if x == 1:
                try:
                    print("in", flush=True)
                    time.sleep(600)
                except Exception:
                    seen.append("exception")
                except InputCancellation:
                    seen.append("cancellation")
                    raise
                finally:
                    seen.append("finally")
            return seen
    """)
    (seq,) = worker.run((1,))
    worker.until(lambda: worker.text() == "in\n")
    worker.cancel(seq)
    with pytest.raises(PlatformError):
        worker.outcome(seq)
    assert worker.call(0) == ["cancellation", "finally"]


def test_waiting_inputs_are_dropped_and_answered(worker: Worker) -> None:
    worker.load(
        f"import os, time\nran = []\ndef f(x):\n    ran.append(x)\n    while not {MAY_GO}: time.sleep(0.005)\n"
        "    return ran\n"
    )
    seqs = worker.run((0,), (1,), (2,), (3,))
    worker.wait_running(seqs[0])
    for seq in seqs[1:3]:
        worker.cancel(seq)
    worker.go()
    assert worker.outcome(seqs[3]) == [0, 3]
    for seq in seqs[1:3]:
        with pytest.raises(PlatformError, match="before it had started") as caught:
            worker.outcome(seq)
        assert not caught.value.failure.may_have_run


def test_a_frame_alone_stops_an_input_that_waits(worker: Worker) -> None:
    worker.load(
        f"import os, time\ndef f(x):\n    while not {MAY_GO}: time.sleep(0.005)\n    time.sleep(x)\n    return 'fine'\n"
    )
    seqs = worker.run((0,), (600,), (0,))
    worker.send(messages.CancelInput(seqs[1]))
    worker.go()
    assert worker.outcome(seqs[2]) == "fine"
    with pytest.raises(PlatformError, match="input-cancelled"):
        worker.outcome(seqs[1])


def test_a_late_signal_hits_nobody(worker: Worker) -> None:
    worker.load("def f(x):\n    return sum(range(x))\n")
    for _ in range(30):
        (seq,) = worker.run((1000,))
        assert worker.outcome(seq) == 499500
        worker.page.cancel(seq, SharedPage.CANCELLED)
        worker.send(messages.CancelInput(seq))
        os.kill(worker.pid, signal.SIGUSR1)
    assert worker.call(3) == 3


def test_storms_of_cancellation_lose_and_mix_up_nothing(worker: Worker) -> None:
    """Each input ends exactly once, with its own value or as cancelled, wherever the signal falls."""
    worker.load("def f(x):\n    return x\n")
    for _ in range(40):
        seqs = worker.run(*[(n,) for n in range(100)])
        while worker.page.started not in seqs and not worker.read(0):
            pass
        for _ in range(5):
            worker.cancel(worker.page.started)
        worker.until(lambda seqs=seqs: all(seq in worker.results for seq in seqs))
        for number, seq in enumerate(seqs):
            try:
                assert worker.outcome(seq) == number
            except PlatformError as error:
                assert error.failure.code == "input-cancelled"


def test_a_nested_wait_is_interrupted_and_the_connection_goes_on(worker: Worker) -> None:
    worker.load("""
        import farcall
        app = farcall.App("x")
        @app.function()
        def g(x):
            raise AssertionError
        @app.function()
        def f(x):
            return g.remote(x) if x else "fine"
    """)
    for _ in range(3):
        (seq,) = worker.run((1,))
        submit = worker.expect(messages.Submit)
        worker.cancel(seq)
        with pytest.raises(PlatformError, match="input-cancelled"):
            worker.outcome(seq)
        assert worker.expect(messages.CancelCall).call_id == submit.call_id
        assert worker.call(0) == "fine"


def test_a_nested_wait_beside_a_thread_that_reads_is_interrupted(worker: Worker) -> None:
    worker.load("""
        import threading, farcall
        app = farcall.App("x")
        @app.function()
        def g(x):
            raise AssertionError
        @app.function()
        def f(x):
            if x:
                threading.Thread(target=g.remote, args=(1,), daemon=True).start()
                g.remote(2)
            return "fine"
    """)
    (seq,) = worker.run((1,))
    worker.expect(messages.Submit)
    worker.expect(messages.Submit)
    worker.cancel(seq)
    with pytest.raises(PlatformError, match="input-cancelled"):
        worker.outcome(seq)
    worker.expect(messages.CancelCall)
    assert worker.call(0) == "fine"


def test_signals_of_user_code_are_its_own(worker: Worker) -> None:
    worker.load("""
        import signal, time
        def f():
            def ring(number, frame):
                print("ring")
                raise TimeoutError("alarm")
            signal.signal(signal.SIGALRM, ring)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                time.sleep(60)
            except TimeoutError as error:
                return str(error)
    """)
    assert worker.call() == "alarm"
    assert worker.text() == "ring\n"


def test_an_async_function_s_task_is_cancelled(worker: Worker) -> None:
    worker.load(
        """
        import asyncio
        seen = []
        async def f(x):
            if x:
                try:
                    print("in", flush=True)
                    await asyncio.sleep(600)
                except asyncio.CancelledError:
                    seen.append("cancelled")
                    raise
                finally:
                    await asyncio.sleep(0)
                    seen.append("finally")
            return seen
        """,
        asynchronous=True,
    )
    (first,) = worker.run((1,))
    worker.until(lambda: worker.text() == "in\n")  # past the function's first step
    worker.cancel(first)
    with pytest.raises(PlatformError, match="input-cancelled"):
        worker.outcome(first)
    assert worker.call(0) == ["cancelled", "finally"]
    second, third = worker.run((1,), (0,))
    worker.wait_running(second)
    worker.send(messages.CancelInput(second))
    assert worker.outcome(third)[:2] == ["cancelled", "finally"]
    with pytest.raises(PlatformError):
        worker.outcome(second)


def test_an_async_function_that_times_out(worker: Worker) -> None:
    worker.load("import asyncio\nasync def f():\n    await asyncio.sleep(600)\n", asynchronous=True, timeout=1.0)
    (seq,) = worker.run(())
    worker.wait_running(seq)
    worker.cancel(seq, SharedPage.TIMED_OUT)
    with pytest.raises(PlatformError, match="function-timeout"):
        worker.outcome(seq)


def test_a_running_async_input_and_a_termination_signal(worker: Worker) -> None:
    worker.load(
        "import asyncio\nasync def f():\n    try:\n        print('in', flush=True)\n        await asyncio.sleep(600)\n"
        "    finally: print('ended')\n",
        asynchronous=True,
    )
    worker.run(())
    worker.until(lambda: worker.text() == "in\n")
    os.kill(worker.pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(worker.wait_exit()) == -signal.SIGTERM
    assert worker.text() == "in\nended\n"
