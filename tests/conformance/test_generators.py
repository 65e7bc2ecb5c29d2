"""Semantics: generators."""

import asyncio
import itertools
import time
from typing import Any

import generators_app
import pytest
from generators_app import app  # noqa: F401 - the fixture runs it

import farcall
from farcall import errors
from farcall.wire.messages import GENERATOR_WINDOW


@pytest.mark.parametrize("function", [generators_app.count, generators_app.count_later], ids=["sync", "async"])
@pytest.mark.parametrize("n", [0, 1, 5_000])
def test_items_come_in_order(function: Any, n: int) -> None:
    """Sync and async generators stream their items, in order, however many."""
    assert list(function.remote_gen(n)) == list(range(n))

    async def main() -> list[int]:
        return [x async for x in function.remote_gen.aio(n)]

    assert asyncio.run(main()) == list(range(n))


def test_items_arrive_one_by_one() -> None:
    """Item by item: each is there when it is yielded, not when the generator ends."""
    taken: list[str] = []
    for item in generators_app.handshake.remote_gen():
        taken.append(item)
        generators_app.Taken().one_more.remote()
    assert taken == ["item 0", "item 1", "item 2"]


def test_large_items() -> None:
    """Items have no size limit."""
    sizes = [(len(block), block[0]) for block in generators_app.blocks.remote_gen(20, 1_000_000)]
    assert sizes == [(1_000_000, n) for n in range(20)]


@pytest.mark.parametrize("method", ["endless", "endless_later"])
def test_backpressure_and_abandoning(method: str) -> None:
    """A consumer that does not take items holds the generator back; abandoning the iterator closes it over there."""
    source = generators_app.Source()
    source.state.remote()
    items = getattr(source, method).remote_gen()
    assert list(itertools.islice(items, 10)) == list(range(1, 11))
    time.sleep(0.3)  # time in which an unbounded generator would run far ahead
    items.close()
    made, ends = source.state.remote()  # runs when the generator has been closed
    assert 10 <= made <= 10 + GENERATOR_WINDOW + 1
    assert ends[-1:] == ["finally"]
    if method == "endless":
        assert ends == ["closed", "finally"]


def test_breaking_out_of_the_loop_closes_the_generator() -> None:
    """`break` abandons the iterator."""
    source = generators_app.Source()
    source.state.remote()
    for item in source.endless.remote_gen():
        if item == 3:
            break
    assert source.state.remote()[1] == ["closed", "finally"]


def test_abandoning_an_async_iterator_closes_the_generator() -> None:
    """The same for `async for` and a task that is cancelled."""
    source = generators_app.Source()
    source.state.remote()

    async def main() -> None:
        async def consume() -> None:
            async for _ in source.endless.remote_gen.aio():
                started.set()
                await asyncio.Event().wait()

        started = asyncio.Event()
        task = asyncio.create_task(consume())
        await asyncio.wait_for(started.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert source.state.remote()[1] == ["closed", "finally"]


@pytest.mark.parametrize("function", [generators_app.break_at, generators_app.break_later_at], ids=["sync", "async"])
@pytest.mark.parametrize("n", [0, 3, 500])
def test_a_failure_in_mid_stream(function: Any, n: int) -> None:
    """A failure mid-stream delivers the earlier items and then raises."""
    got: list[int] = []
    with pytest.raises(ValueError, match=f"after {n} items"):
        for item in function.remote_gen(n):
            got.append(item)
    assert got == list(range(n))


def test_an_item_that_cannot_be_pickled() -> None:
    """An unpicklable item is a SerializationError after the earlier items."""
    items = generators_app.yield_lock.remote_gen()
    assert next(items) == 1
    with pytest.raises(errors.SerializationError, match="lock"):
        next(items)


def test_several_generators_at_once() -> None:
    """Generators taken in turns do not hinder each other, nor calls in between."""
    first, second = generators_app.count.remote_gen(1000), generators_app.count_later.remote_gen(1000)
    for n, (a, b) in enumerate(zip(first, second, strict=True)):
        assert (a, b) == (n, n)


def test_a_plain_function_that_returns_a_generator() -> None:
    """A plain function that returns a generator is an error that says how to declare it; declared so, it streams."""
    with pytest.raises(errors.InvalidError, match=r"is_generator=True.*remote_gen"):
        generators_app.returns_a_generator.remote(3)
    assert list(generators_app.declared.remote_gen(3)) == [0, 1, 2]


def test_generators_in_containers() -> None:
    """remote_gen inside a container works."""
    assert generators_app.in_container.remote(300) == list(range(300))


def test_retries_are_refused() -> None:
    """A generator cannot be retried, since items may have been delivered: an error at decoration."""
    with pytest.raises(errors.InvalidError, match="generator"):
        farcall.App("retried").function(retries=1, serialized=True)(generators_app.count.raw)
