"""Inputs that run beside each other: asynchronous ones as tasks, others in threads."""

import os
import signal
from typing import Any

import pytest

from farcall import errors
from farcall.sdk import values
from farcall.spec.function import Concurrency, MethodSpec
from farcall.wire import messages
from farcall.wire.page import SharedPage

from .conftest import MAY_GO, PlatformError, Worker

BOTH = pytest.mark.parametrize("asynchronous", [False, True])
TEN = Concurrency(10, 10)

MEET = """
    import asyncio, os, sys, threading, time
    import farcall
    here = threading.Semaphore(0)
    {0}def f(count, x):
        # Each waits until all others have come, so they must run at once.
        here.release()
        end = time.monotonic() + 20
        while here._value < count and time.monotonic() < end:
            {1}sleep(0.001)
        print("one", x, end=" ")
        {1}sleep(0.01)
        print("two", x)
        print("three", x, file=sys.stderr)
        return x, here._value >= count, farcall.current_input_id(), threading.get_ident()
"""


def program(text: str, asynchronous: bool) -> str:
    return text.format("async ", "await asyncio.") if asynchronous else text.format("", "time.")


@BOTH
def test_inputs_run_at_once_each_with_its_own_output_and_id(worker: Worker, asynchronous: bool) -> None:
    worker.load(program(MEET, asynchronous), asynchronous=asynchronous, concurrency=TEN)
    seqs = worker.run(*[(8, x) for x in range(5)], call_id="fc-a") + worker.run(
        *[(8, x) for x in range(5, 8)], call_id="fc-b"
    )
    outcomes = [worker.outcome(seq) for seq in seqs]
    assert [(x, met, name) for x, met, name, _ in outcomes] == [
        *[(x, True, f"in-a-{x}") for x in range(5)],
        *[(x, True, f"in-b-{x - 5}") for x in range(5, 8)],
    ]
    assert len({thread for *_, thread in outcomes}) == (1 if asynchronous else 8)
    for x, seq in enumerate(seqs):
        assert worker.text("stdout", seq) == f"one {x} two {x}\n"
        assert worker.text("stderr", seq) == f"three {x}\n"
    assert os.waitstatus_to_exitcode(worker.stop()) == 0


@BOTH
def test_results_come_as_inputs_end(worker: Worker, asynchronous: bool) -> None:
    text = "    import asyncio, time\n    {0}def f(x):\n        {1}sleep(x)\n        return x\n"
    worker.load(program(text, asynchronous), asynchronous=asynchronous, concurrency=TEN)
    long, short = worker.run((30,), (0,))
    assert worker.outcome(short) == 0
    assert long not in worker.results


@BOTH
def test_failures_are_each_input_s_own(worker: Worker, asynchronous: bool) -> None:
    text = """
        import asyncio, sys, threading, time
        {0}def f(x):
            {1}sleep(0.01)
            if x == 1: raise ValueError(x)
            if x == 2: sys.exit(3)
            if x == 3: return threading.Lock()
            if x == 4: return (i for i in ())
            return x
    """
    worker.load(program(text, asynchronous), asynchronous=asynchronous, concurrency=TEN)
    seqs = worker.run(*[(x,) for x in range(6)])
    with pytest.raises(ValueError, match="1"):
        worker.outcome(seqs[1])
    with pytest.raises(errors.ExecutionError, match="SystemExit"):
        worker.outcome(seqs[2])
    with pytest.raises(errors.SerializationError):
        worker.outcome(seqs[3])
    with pytest.raises(errors.SerializationError if asynchronous else errors.InvalidError, match="generator"):
        worker.outcome(seqs[4])
    assert [worker.outcome(seqs[x]) for x in (0, 5)] == [0, 5]


def test_a_class_of_both_kinds(worker: Worker) -> None:
    worker.load(
        """
        import asyncio, threading, farcall
        app = farcall.App("x")
        @app.cls()
        class C:
            @farcall.enter()
            async def begin(self):
                self.loop = asyncio.get_running_loop()
                self.come = 0
                self.all = threading.Event()
            def meet(self):
                self.come += 1
                if self.come == 4:
                    self.all.set()
            @farcall.method()
            def plain(self):
                self.meet()
                return self.all.wait(20), threading.current_thread() is threading.main_thread()
            @farcall.method()
            async def later(self):
                self.meet()
                while not self.all.is_set():
                    await asyncio.sleep(0.001)
                return self.all.is_set(), asyncio.get_running_loop() is self.loop
            @farcall.exit()
            async def end(self):
                print("end", asyncio.get_running_loop() is self.loop)
        """,
        "C",
        is_class=True,
        methods=(MethodSpec("plain"), MethodSpec("later", is_async=True)),
        concurrency=TEN,
    )
    seqs = worker.run((), (), method="plain") + worker.run((), (), method="later")
    assert [worker.outcome(seq) for seq in seqs] == [(True, False)] * 2 + [(True, True)] * 2
    assert worker.stop() == 0
    assert worker.text() == "end True\n"


def test_threads_are_used_again_and_context_variables_are_not(worker: Worker) -> None:
    worker.load(
        """
        import contextvars, threading
        seen = contextvars.ContextVar("seen", default=None)
        def f(x):
            before = seen.get()
            seen.set(x)
            return before, threading.active_count()
        """,
        concurrency=TEN,
    )
    outcomes = [worker.call(x) for x in range(20)]
    assert {before for before, _ in outcomes} == {None}
    assert max(count for _, count in outcomes) <= 4


def test_a_plain_function_that_returns_a_coroutine(worker: Worker) -> None:
    """A decorator can hide that a function is asynchronous."""
    worker.load(
        """
        import asyncio
        async def g(x):
            await asyncio.sleep(0)
            return x
        def f(x):
            return g(x)
        """,
        concurrency=TEN,
    )
    seqs = worker.run((1,), (2,))
    assert [worker.outcome(seq) for seq in seqs] == [1, 2]


@BOTH
def test_generators_beside_each_other_have_each_their_own_credit(worker: Worker, asynchronous: bool) -> None:
    text = """
        import asyncio, time
        {0}def f(name, count):
            for i in range(count):
                yield f"{{name}}{{i}}"
    """
    worker.load(program(text, asynchronous), asynchronous=asynchronous, generator=True, concurrency=TEN)
    a, b = worker.run(("a", 30), ("b", 30), credit=4)

    def items(seq: int) -> list[Any]:
        return [values.loads(item) for message, _ in worker.items if message.seq == seq for item in message.items]

    worker.until(lambda: len(items(a)) == len(items(b)) == 4)
    worker.send(messages.RunnerCredit(b, 100))
    assert worker.outcome(b) == 30
    assert items(b) == [f"b{i}" for i in range(30)]
    assert len(items(a)) == 4
    worker.send(messages.RunnerCredit(a, 100))
    assert worker.outcome(a) == 30
    assert items(a) == [f"a{i}" for i in range(30)]


@BOTH
def test_an_abandoned_generator_is_closed_and_those_beside_it_go_on(worker: Worker, asynchronous: bool) -> None:
    text = """
        import asyncio, time
        {0}def f(x):
            try:
                while True:
                    yield x
                    {1}sleep(0.001)
            finally:
                print("closed", x)
    """
    worker.load(program(text, asynchronous), asynchronous=asynchronous, generator=True, concurrency=TEN)
    waiting, running, other = worker.run((1,), credit=1) + worker.run((2,), (3,), credit=1_000_000)
    worker.until(lambda: len(worker.items) >= 5)
    for seq in (waiting, running):
        worker.stop_input(seq)
        with pytest.raises(PlatformError, match="input-cancelled"):
            worker.outcome(seq)
    assert (worker.text(seq=waiting), worker.text(seq=running)) == ("closed 1\n", "closed 2\n")
    assert other not in worker.results
    count = len(worker.items)
    worker.until(lambda: len(worker.items) > count)
    assert worker.stop() == 0
    assert worker.text(seq=other) == "closed 3\n"


# --- stopping


@pytest.mark.parametrize(
    ("reason", "code"), [(SharedPage.CANCELLED, "input-cancelled"), (SharedPage.TIMED_OUT, "function-timeout")]
)
def test_a_task_is_cancelled_and_those_beside_it_go_on(worker: Worker, reason: int, code: str) -> None:
    worker.load(
        """
        import asyncio
        go = asyncio.Event()
        async def f(x):
            if x == "go":
                go.set()
            elif x == "stubborn":
                try:
                    await asyncio.sleep(600)
                except asyncio.CancelledError:
                    return "swallowed"
            elif x:
                await asyncio.sleep(600)
            else:
                await go.wait()
            return x
        """,
        asynchronous=True,
        concurrency=TEN,
    )
    other, first, second = worker.run((0,), (1,), ("stubborn",))
    worker.wait_running(second)
    for seq in (first, second):
        worker.stop_input(seq, reason)
        with pytest.raises(PlatformError, match=code):
            worker.outcome(seq)
    assert worker.call("go") == "go"
    assert worker.outcome(other) == 0


def test_an_input_in_a_thread_is_answered_as_stopped_when_it_ends(worker: Worker) -> None:
    worker.load(
        """
        import threading
        told = threading.Event()
        def f(x):
            if x == "end":
                told.set()
            told.wait()
            return x
        """,
        concurrency=TEN,
    )
    first, second = worker.run((1,), (2,))
    worker.wait_running(second)
    worker.stop_input(first, SharedPage.TIMED_OUT)
    assert worker.call("end") == "end"
    with pytest.raises(PlatformError, match="function-timeout"):
        worker.outcome(first)
    assert worker.outcome(second) == 2


def test_inputs_that_a_blocked_loop_has_not_started_are_taken_back(worker: Worker) -> None:
    worker.load(
        f"""
        import os, time
        seen = []
        async def f(x):
            seen.append(x)
            while not {MAY_GO}: time.sleep(0.005)
            return list(seen)
        """,
        asynchronous=True,
        concurrency=TEN,
    )
    (first,) = worker.run((1,))
    worker.wait_running(first)
    second, third = worker.run((2,), (3,))
    assert worker.page.revoke(second, third) == first
    worker.go()
    assert worker.outcome(first) == [1]
    worker.until(lambda: len(worker.results) == 3)
    assert [worker.results[seq][0].status for seq in (second, third)] == [messages.REVOKED] * 2
    assert worker.call(4) == [1, 4]


@BOTH
def test_storms_of_cancellation_lose_and_mix_up_nothing(worker: Worker, asynchronous: bool) -> None:
    """Each input ends exactly once, with its own value or as cancelled, whenever it is told to stop."""
    text = "    import asyncio, time\n    {0}def f(x):\n        {1}sleep(x % 3 / 1000)\n        return x\n"
    worker.load(program(text, asynchronous), asynchronous=asynchronous, concurrency=Concurrency(100, 100))
    for _ in range(20):
        seqs = worker.run(*[(n,) for n in range(50)])
        for seq in seqs[::3]:
            worker.stop_input(seq)
        worker.until(lambda seqs=seqs: all(seq in worker.results for seq in seqs))
        for number, seq in enumerate(seqs):
            try:
                assert worker.outcome(seq) == number
            except PlatformError as error:
                assert error.failure.code == "input-cancelled"
                assert number % 3 == 0


# --- nested calls and children


@BOTH
def test_nested_calls_beside_each_other(worker: Worker, asynchronous: bool) -> None:
    remote = "await g.remote.aio(x)" if asynchronous else "g.remote(x)"
    worker.load(
        f"""
        import farcall
        app = farcall.App("x")
        @app.function()
        def g(x):
            raise AssertionError
        @app.function()
        {"async " if asynchronous else ""}def f(x):
            return x, {remote}
        """,
        asynchronous=asynchronous,
        concurrency=TEN,
    )
    seqs = worker.run(*[(x,) for x in range(6)])
    submits = [worker.expect(messages.Submit) for _ in seqs]
    assert {submit.parent for submit in submits} == {f"in-1-{x}" for x in range(6)}
    for submit in reversed(submits):
        (x,), _ = values.loads(submit.inputs[0].data)
        assert submit.parent == f"in-1-{x}"
        payload = values.dumps(x * 100)
        worker.send(messages.Outputs(submit.call_id, [messages.Output(0, messages.OK, payload.data)]))
    assert [worker.outcome(seq) for seq in seqs] == [(x, x * 100) for x in range(6)]


def test_children_that_threads_fork(worker: Worker) -> None:
    worker.load(
        """
        import os
        def f(x):
            pid = os.fork()
            if pid == 0:
                print("child", x)
                return "never sent"
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        """,
        concurrency=TEN,
    )
    seqs = worker.run(*[(x,) for x in range(4)])
    assert [worker.outcome(seq) for seq in seqs] == [0] * 4
    worker.stop()
    assert sorted(bytes(worker.raw[1]).decode().splitlines()) == [f"child {x}" for x in range(4)]


# --- the end

ENDING = """
    import asyncio, time, farcall
    app = farcall.App("x")
    @app.cls()
    class C:
        @farcall.method()
        {0}def f(self, x):
            try:
                print("begins", x, flush=True)
                {1}sleep(x)
            finally:
                print("finally", x)
            return x
        @farcall.exit()
        def end(self):
            print("exit hook")
"""


def load_ending(worker: Worker, asynchronous: bool) -> None:
    worker.load(
        program(ENDING, asynchronous),
        "C",
        is_class=True,
        methods=(MethodSpec("f", is_async=asynchronous),),
        concurrency=TEN,
    )


@BOTH
def test_exit_hooks_run_though_inputs_do_not_end(worker: Worker, asynchronous: bool) -> None:
    """Tasks are cancelled first; a thread that goes on is left behind."""
    load_ending(worker, asynchronous)
    long, short = worker.run((600,), (0.2,), method="f")
    worker.until(lambda: "begins 600" in worker.text() and "begins 0.2" in worker.text())
    assert worker.stop() == 0
    if asynchronous:
        assert worker.text(seq=long) == "begins 600\nfinally 600\n"
    else:
        assert worker.outcome(short) == 0.2
    assert worker.text(seq=0) == "exit hook\n"


@BOTH
def test_a_termination_signal(worker: Worker, asynchronous: bool) -> None:
    """The signal says what became of the inputs that ran; exit hooks run."""
    load_ending(worker, asynchronous)
    seqs = worker.run((600,), (601,), method="f")
    worker.wait_running(seqs[1])
    os.kill(worker.pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(worker.wait_exit()) == -signal.SIGTERM
    assert worker.results == {}
    assert worker.text(seq=0) == "exit hook\n"


@BOTH
def test_a_termination_signal_where_nothing_runs(worker: Worker, asynchronous: bool) -> None:
    load_ending(worker, asynchronous)
    assert worker.call(0, method="f") == 0
    os.kill(worker.pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(worker.wait_exit()) == 0
    assert worker.text(seq=0) == "exit hook\n"


@BOTH
def test_the_lifeline_brings_another_connection(worker: Worker, asynchronous: bool) -> None:
    import socket

    text = f"""
        import asyncio, os, time
        {{0}}def f(x):
            while not {MAY_GO}: {{1}}sleep(0.005)
            return x
    """
    worker.load(program(text, asynchronous), asynchronous=asynchronous, concurrency=TEN)
    seqs = worker.run((1,), (2,))
    worker.wait_running(seqs[1])
    worker.sock.close()
    worker.sock, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    socket.send_fds(worker.lifeline, [b"socket"], [control.fileno()])
    control.close()
    worker.go()
    assert worker.expect(messages.Hello).container_id == "ta-test"
    assert worker.expect(messages.Parked) == messages.Parked(0, [])
    assert [worker.outcome(seq) for seq in seqs] == [1, 2]
    assert worker.call(0) == 0
    assert worker.stop() == 0
