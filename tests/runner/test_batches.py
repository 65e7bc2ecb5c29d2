"""Batches: inputs that are run together, and end each on its own."""

import pytest

from farcall import errors
from farcall.spec.function import Batching, Concurrency, MethodSpec
from farcall.wire import messages
from farcall.wire.page import SharedPage

from .conftest import MAY_GO, PlatformError, Worker

BOTH = pytest.mark.parametrize("asynchronous", [False, True])
ALONE = Concurrency()
HUNDRED = Batching(100, 0)
KINDS = pytest.mark.parametrize(
    ("asynchronous", "concurrency"),
    [(False, ALONE), (True, ALONE), (False, Concurrency(4, 4)), (True, Concurrency(4, 4))],
    ids=["sync", "async", "threads", "tasks"],
)

PROGRAM = """
    import asyncio, threading, time, farcall
    {0}def f(xs, ys):
        print("batch", xs)
        if xs[0] == "short": return [1]
        if xs[0] == "tuple": return tuple(xs)
        if xs[0] == "raise": raise ValueError(ys)
        if xs[0] == "lock": return [threading.Lock() if y else y for y in ys]
        {1}sleep(0.01)
        return [(x, y, farcall.current_input_id()) for x, y in zip(xs, ys)]
"""


def load(worker: Worker, text: str, asynchronous: bool, concurrency: Concurrency = ALONE) -> None:
    text = text.format("async ", "await asyncio.") if asynchronous else text.format("", "time.")
    worker.load(text, asynchronous=asynchronous, concurrency=concurrency, batching=HUNDRED)


@KINDS
def test_arguments_become_lists_and_results_are_each_input_s(
    worker: Worker, asynchronous: bool, concurrency: Concurrency
) -> None:
    load(worker, PROGRAM, asynchronous, concurrency)
    seqs = worker.run((1, 2), (3, 4), call_id="fc-a", batch=3) + worker.run((5,), call_id="fc-b", batch=1, ys=6)
    assert [worker.outcome(seq) for seq in seqs] == [(x, y, "in-a-0") for x, y in ((1, 2), (3, 4), (5, 6))]
    assert worker.text(seq=seqs[0]) == "batch [1, 3, 5]\n"
    (alone,) = worker.run((7, 8), batch=1)
    assert worker.outcome(alone)[:2] == (7, 8)


@KINDS
def test_a_batch_waits_for_all_of_its_frames(worker: Worker, asynchronous: bool, concurrency: Concurrency) -> None:
    load(worker, PROGRAM, asynchronous, concurrency)
    seqs = worker.run((1, 2), batch=2)
    assert not worker.read(0.1)
    seqs += worker.run((3, 4), batch=1)
    assert [worker.outcome(seq)[:2] for seq in seqs] == [(1, 2), (3, 4)]


@KINDS
@pytest.mark.parametrize(
    ("first", "error", "match"),
    [
        ("short", errors.InvalidError, "f is @farcall.batched, was given 2 items and returned a list of 1"),
        ("tuple", errors.InvalidError, "f is @farcall.batched and returned a tuple; it must return a list with one"),
        ("raise", ValueError, r"\[0, 1\]"),
    ],
)
def test_a_failure_is_that_of_all(
    worker: Worker,
    asynchronous: bool,
    concurrency: Concurrency,
    first: str,
    error: type[Exception],
    match: str,
) -> None:
    load(worker, PROGRAM, asynchronous, concurrency)
    for seq in worker.run((first, 0), ("b", 1), batch=2):
        with pytest.raises(error, match=match):
            worker.outcome(seq)
    (after,) = worker.run((1, 2), batch=1)
    assert worker.outcome(after)[:2] == (1, 2)


def test_what_concerns_one_input_fails_it_alone(worker: Worker) -> None:
    load(worker, PROGRAM, False)
    few, many, good = worker.run((1,), (1, 2, 3), (4, 5), batch=3)
    for seq in (few, many):
        with pytest.raises(TypeError, match=r"f\(\) (misses the argument ys|takes 2 arguments)"):
            worker.outcome(seq)
    assert worker.outcome(good)[:2] == (4, 5)
    bad, fine = worker.run(("lock", 1), ("b", 0), batch=2)
    with pytest.raises(errors.SerializationError, match="lock"):
        worker.outcome(bad)
    assert worker.outcome(fine) == 0


def test_large_batches_of_large_values(worker: Worker) -> None:
    worker.load("def f(xs):\n    return [x[:-1] for x in xs]\n", batching=Batching(1000, 0))
    seqs = worker.run(*[(bytes(1000),) for _ in range(100)], batch=140)
    seqs += worker.run(*[(bytes(200_000),) for _ in range(20)], batch=40)
    seqs += worker.run(*[(bytes(200_000),) for _ in range(20)], batch=20)
    assert [len(worker.outcome(seq)) for seq in seqs] == [999] * 100 + [199_999] * 40


# --- stopping

# Takes as many seconds as the longest of its inputs; one that is None lasts until `Worker.go`.
LONG = """
    import asyncio, os, time
    {0}def f(xs):
        try:
            print("begins", flush=True)
            while None in xs and not MAY_GO:
                {1}sleep(0.005)
            {1}sleep(max(x or 0 for x in xs))
        finally:
            print("finally", xs)
        return xs
""".replace("MAY_GO", MAY_GO)


@BOTH
def test_inputs_cancelled_before_the_batch_starts_are_left_out(worker: Worker, asynchronous: bool) -> None:
    load(worker, LONG, asynchronous)
    (busy,) = worker.run((None,), batch=1)
    worker.wait_running(busy)
    one, two, three = worker.run((0,), (0.1,), (0.05,), batch=3)
    worker.cancel(two)
    worker.go()
    assert [worker.outcome(one), worker.outcome(three)] == [0, 0.05]
    with pytest.raises(PlatformError, match="before it had started"):
        worker.outcome(two)


@BOTH
def test_a_batch_runs_on_for_those_that_are_not_cancelled(worker: Worker, asynchronous: bool) -> None:
    load(worker, LONG, asynchronous)
    one, two = worker.run((0.3,), (0.2,), batch=2)
    worker.wait_running(two)
    worker.cancel(two)
    assert worker.outcome(one) == 0.3
    assert worker.text(seq=one) == "begins\nfinally [0.3, 0.2]\n"
    assert worker.outcome(two) == 0.2  # its caller has been told that it is cancelled, and takes no notice


@BOTH
@pytest.mark.parametrize(
    ("reason", "code"), [(SharedPage.CANCELLED, "input-cancelled"), (SharedPage.TIMED_OUT, "function-timeout")]
)
def test_a_batch_is_stopped_when_all_of_it_is(worker: Worker, asynchronous: bool, reason: int, code: str) -> None:
    load(worker, LONG, asynchronous)
    one, two = worker.run((600,), (600,), batch=2)
    worker.until(lambda: worker.text(seq=one) == "begins\n")
    worker.cancel(one, SharedPage.CANCELLED)
    worker.cancel(two, reason)
    with pytest.raises(PlatformError, match="input-cancelled"):
        worker.outcome(one)
    with pytest.raises(PlatformError, match=code):
        worker.outcome(two)
    assert worker.text(seq=one) == "begins\nfinally [600, 600]\n"
    (after,) = worker.run((0,), batch=1)
    assert worker.outcome(after) == 0


def test_a_task_of_a_batch_is_cancelled_when_all_of_it_is(worker: Worker) -> None:
    load(worker, LONG, True, Concurrency(4, 4))
    one, two, other = worker.run((600,), (601,), batch=2) + worker.run((0.5,), batch=1)
    worker.wait_running(other)
    worker.stop_input(one)
    worker.stop_input(two, SharedPage.TIMED_OUT)
    with pytest.raises(PlatformError, match="input-cancelled"):
        worker.outcome(one)
    with pytest.raises(PlatformError, match="function-timeout"):
        worker.outcome(two)
    assert worker.outcome(other) == 0.5


def test_a_batch_that_is_taken_back(worker: Worker) -> None:
    load(worker, LONG, False)
    (busy,) = worker.run((None,), batch=1)
    worker.wait_running(busy)
    seqs = worker.run((0,), (0,), batch=2)
    assert worker.page.revoke(seqs[0], seqs[-1]) == busy
    worker.go()
    worker.until(lambda: len(worker.results) == 3)
    assert [worker.results[seq][0].status for seq in seqs] == [messages.REVOKED] * 2


def test_a_method(worker: Worker) -> None:
    worker.load(
        """
        import farcall
        app = farcall.App("x")
        @app.cls()
        class C:
            @farcall.enter()
            def begin(self):
                self.calls = 0
            @farcall.batched(max_batch_size=4, wait_ms=0)
            def f(self, xs):
                self.calls += 1
                return [(x, self.calls) for x in xs]
        """,
        "C",
        is_class=True,
        methods=(MethodSpec("f"),),
        batching=HUNDRED,
    )
    for call in (1, 2):
        seqs = worker.run((1,), (2,), method="f", batch=2)
        assert [worker.outcome(seq) for seq in seqs] == [(1, call), (2, call)]
