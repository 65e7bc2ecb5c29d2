"""Generators: items, backpressure, failure, abandonment; and asynchronous functions."""

import os

import pytest

from farcall import errors
from farcall.wire import messages

from .conftest import PlatformError, Worker

BOTH = pytest.mark.parametrize("asynchronous", [False, True])


def program(body: str, asynchronous: bool) -> str:
    return f"import asyncio, os, time\n{'async ' if asynchronous else ''}def f(n):\n    {body}\n"


@BOTH
def test_items_in_order_then_their_number(worker: Worker, asynchronous: bool) -> None:
    worker.load(program("for i in range(n): yield i", asynchronous), generator=True, asynchronous=asynchronous)
    for count in (0, 1, 500):
        (seq,) = worker.run((count,), credit=1000)
        assert worker.outcome(seq) == count
        assert worker.results[seq][0].status == messages.GENERATOR_DONE
        assert worker.stream() == list(range(count))
        worker.items.clear()


@BOTH
def test_large_items(worker: Worker, asynchronous: bool) -> None:
    body = "for i in range(n): yield bytes([i]) * (200_000 if i % 2 else 50_000)"
    worker.load(program(body, asynchronous), generator=True, asynchronous=asynchronous)
    (seq,) = worker.run((30,), credit=100)
    assert worker.outcome(seq) == 30
    assert [len(item) for item in worker.stream()] == [50_000, 200_000] * 15


@BOTH
def test_no_more_items_than_there_is_credit(worker: Worker, asynchronous: bool) -> None:
    body = "for i in range(n): print(i); yield i"
    worker.load(program(body, asynchronous), generator=True, asynchronous=asynchronous)
    (seq,) = worker.run((20,), credit=5)
    worker.until(lambda: len(worker.stream()) == 5)
    assert not worker.read(0.1)
    worker.send(messages.RunnerCredit(seq, 3))
    worker.until(lambda: len(worker.stream()) == 8)
    assert not worker.read(0.1)
    assert worker.text(seq=seq) == "".join(f"{i}\n" for i in range(8))
    worker.send(messages.RunnerCredit(seq, 100))
    assert worker.outcome(seq) == 20
    assert worker.stream() == list(range(20))


@BOTH
def test_a_failure_comes_after_the_items_before_it(worker: Worker, asynchronous: bool) -> None:
    body = "for i in range(n): yield i\n    raise ValueError('late')"
    worker.load(program(body, asynchronous), generator=True, asynchronous=asynchronous)
    (seq,) = worker.run((7,), credit=100)
    with pytest.raises(ValueError, match="late"):
        worker.outcome(seq)
    assert worker.stream() == list(range(7))


@BOTH
def test_an_item_that_cannot_be_pickled(worker: Worker, asynchronous: bool) -> None:
    body = "import threading; yield 1; yield threading.Lock()"
    worker.load(program(body, asynchronous), generator=True, asynchronous=asynchronous)
    (seq,) = worker.run((7,), credit=100)
    with pytest.raises(errors.SerializationError, match="item"):
        worker.outcome(seq)
    assert worker.stream() == [1]


@BOTH
@pytest.mark.parametrize("credit", [3, 1_000_000])
@pytest.mark.parametrize("signalled", [False, True])
def test_an_abandoned_generator_is_closed(worker: Worker, asynchronous: bool, credit: int, signalled: bool) -> None:
    body = """
    try:
        while True:
            yield n
            PAUSE
    finally:
        print("closed")
    """.replace("PAUSE", "await asyncio.sleep(0.001)" if asynchronous else "time.sleep(0.001)")
    worker.load(program(body.strip(), asynchronous), generator=True, asynchronous=asynchronous)
    (seq,) = worker.run((7,), credit=credit)
    worker.until(lambda: len(worker.stream()) >= 3)
    if signalled:
        worker.cancel(seq)
    else:
        worker.send(messages.CancelInput(seq))
    with pytest.raises(PlatformError, match="input-cancelled"):
        worker.outcome(seq)
    assert worker.text(seq=seq) == "closed\n"
    assert worker.stop() == 0


@BOTH
def test_items_do_not_wait_for_the_next(worker: Worker, asynchronous: bool) -> None:
    pause = "await asyncio.sleep(30)" if asynchronous else "time.sleep(30)"
    body = f"yield 1; yield 2; yield 3; {pause}; yield 4"
    worker.load(program(body, asynchronous), generator=True, asynchronous=asynchronous)
    worker.run((7,), credit=100)
    worker.until(lambda: worker.stream() == [1, 2, 3])


def test_a_plain_function_declared_a_generator(worker: Worker) -> None:
    worker.load("def f(n):\n    return iter(range(n))\n", generator=True)
    (seq,) = worker.run((7,), credit=100)
    assert worker.outcome(seq) == 7
    assert worker.stream() == list(range(7))


def test_async_functions(worker: Worker) -> None:
    worker.load(
        """
        import asyncio, sys, farcall
        ticks = 0
        told_at = None
        tasks = []
        async def tick():
            global ticks
            while True:
                ticks += 1
                if ticks == told_at:
                    print("it goes on", flush=True)
                await asyncio.sleep(0.001)
        async def f(x):
            global told_at
            if x == "start":
                tasks.append(asyncio.create_task(tick()))
            if x == "tell":
                told_at = ticks + 50
            if x == "exit":
                sys.exit(3)
            if x == "cancel":
                raise asyncio.CancelledError
            await asyncio.sleep(0)
            return x, ticks, farcall.current_input_id(), id(asyncio.get_running_loop())
        """,
        asynchronous=True,
    )
    x, _, name, loop = worker.call("start")
    assert (x, name) == ("start", "in-1-0")
    for bad in ("exit", "cancel"):
        with pytest.raises(errors.ExecutionError):
            worker.call(bad)
    ticks = worker.call("tell")[1]
    worker.until(lambda: worker.text() == "it goes on\n")  # while nothing is called
    _, later, _, same = worker.call(2)
    assert later >= ticks + 49  # one tick may have come before `tell` returned what it had seen
    assert same == loop
    seqs = worker.run(*[(n,) for n in range(50)])
    assert [worker.outcome(seq)[0] for seq in seqs] == list(range(50))
    assert worker.stop() == 0


def test_a_nested_call_in_an_async_function(worker: Worker) -> None:
    from farcall.sdk import values

    worker.load(
        """
        import asyncio, farcall
        app = farcall.App("x")
        @app.function()
        def g(x):
            raise AssertionError
        @app.function()
        async def f(x):
            return await asyncio.gather(g.remote.aio(x), g.remote.aio(x + 1))
        """,
        asynchronous=True,
    )
    (seq,) = worker.run((10,))
    for _ in range(2):
        submit = worker.expect(messages.Submit)
        args, _ = values.loads(submit.inputs[0].data)
        payload = values.dumps(args[0] * 100)
        worker.send(messages.Outputs(submit.call_id, [messages.Output(0, messages.OK, payload.data)]))
    assert worker.outcome(seq) == [1000, 1100]
    assert os.waitstatus_to_exitcode(worker.stop()) == 0
