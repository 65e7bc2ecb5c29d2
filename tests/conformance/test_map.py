"""Semantics: map."""

import asyncio
import itertools
import os
import resource
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import map_app
import pytest
from map_app import app  # noqa: F401 - the fixture runs it

from farcall import FunctionCall, errors


def test_one_iterable_per_positional_argument_zipped() -> None:
    """map takes one iterable per positional argument, zips them, and stops with the shortest."""
    assert list(map_app.combine.map("abc", [1, 2])) == [("a", 1, None), ("b", 2, None)]
    assert list(map_app.combine.map(iter("ab"), itertools.count())) == [("a", 0, None), ("b", 1, None)]


def test_kwargs_go_to_each() -> None:
    """kwargs= is passed to each."""
    assert list(map_app.combine.map([1, 2], kwargs={"c": "x"})) == [(1, None, "x"), (2, None, "x")]


def test_order() -> None:
    """Results come in the inputs' order by default, as completed with order_outputs=False."""
    log = map_app.Log()
    seen = log.count.remote()
    results: list[int] = []
    for result in map_app.first_ends_last.map([0, 1, 2], kwargs={"seen": seen + 2}, order_outputs=False):
        results.append(result)
        log.add.remote(result)
    assert results in ([1, 2, 0], [2, 1, 0])
    seen = log.count.remote()
    assert list(map_app.first_ends_last.map([0, 1, 2], kwargs={"seen": seen + 2, "logs": True})) == [0, 1, 2]


def test_results_are_yielded_as_they_come() -> None:
    """The first result is there before the last input has been made."""
    made: list[int] = []

    def inputs() -> Iterator[int]:
        for n in range(5):
            made.append(n)
            yield n
            if n == 0:
                arrived.wait(20)

    import threading

    arrived = threading.Event()
    results = map_app.double.map(inputs())
    assert next(results) == 0
    assert made == [0]
    arrived.set()
    assert list(results) == [2, 4, 6, 8]


def test_empty_input_gives_an_empty_result() -> None:
    """Empty input gives an empty result, in all forms."""
    assert list(map_app.double.map([])) == []
    assert list(map_app.double.map(iter(()))) == []
    assert list(map_app.double.starmap([])) == []
    assert map_app.double.for_each([]) is None
    assert list(map_app.double.map([], [1, 2])) == []

    async def main() -> list[int]:
        return [x async for x in map_app.double.map.aio([])]

    assert asyncio.run(main()) == []


def test_many_inputs() -> None:
    """Tens of thousands of inputs, in order, none lost, none twice."""
    assert list(map_app.double.map(range(20_000))) == list(range(0, 40_000, 2))
    assert sorted(map_app.double.map(iter(range(5_000)), order_outputs=False)) == list(range(0, 10_000, 2))


def test_large_inputs_and_results() -> None:
    """Inputs and results of every size mix in one map, and keep their order."""
    sizes = [10, 70_000, 300_000, 0, 2_000_000, 5] * 10
    values = [os.urandom(size) for size in sizes]
    assert [part[0] for part in map_app.combine.map(values)] == values
    assert [len(block) for block in map_app.block.map(sizes, order_outputs=True)] == sizes


def test_inputs_are_read_lazily() -> None:
    """Inputs are read lazily: at most about 1000 are outstanding, and an infinite iterator with an early break stops
    cleanly."""
    read = 0

    def inputs() -> Iterator[int]:
        nonlocal read
        while True:
            yield read
            read += 1

    results = map_app.double.map(inputs())
    taken = list(itertools.islice(results, 500))
    results.close()
    assert taken == list(range(0, 1000, 2))
    assert read <= 500 + 1100
    read_at_close = read
    assert list(map_app.double.map([1])) == [2]  # goes on
    assert read - read_at_close <= 1


def test_memory_stays_flat() -> None:
    """The reorder buffer is bounded by the outstanding window: results far larger than it do not pile up here."""
    list(map_app.block.map([65_536] * 10))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in map_app.block.map(itertools.repeat(60_000, 6_000)):  # 360 MB, of which 60 MB at most are outstanding
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_async_iterables() -> None:
    """Async iterables are taken by .aio; the blocking form refuses them and says so."""

    async def inputs(n: int) -> AsyncIterator[int]:
        for x in range(n):
            await asyncio.sleep(0)
            yield x

    async def main() -> None:
        assert [x async for x in map_app.double.map.aio(inputs(5))] == [0, 2, 4, 6, 8]
        assert [x async for x in map_app.combine.map.aio(inputs(2), "ab")] == [(0, "a", None), (1, "b", None)]
        assert sorted([x async for x in map_app.double_later.map.aio(inputs(50), order_outputs=False)]) == list(
            range(0, 100, 2)
        )

    asyncio.run(main())
    with pytest.raises(errors.InvalidError, match=r"\.aio"):
        list(map_app.double.map(inputs(1)))  # type: ignore[arg-type]


def test_what_is_not_iterable_is_an_error() -> None:
    """A single input is no iterable; the error says what to write."""
    with pytest.raises(errors.InvalidError, match="iterable"):
        list(map_app.double.map(3))  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidError, match="iterable"):
        list(map_app.double.map())


def test_starmap() -> None:
    """starmap unpacks each item."""
    assert list(map_app.combine.starmap([(1, 2), [3, 4]], kwargs={"c": 5})) == [(1, 2, 5), (3, 4, 5)]


def test_for_each() -> None:
    """for_each runs all for their effects; the first failure is raised unless ignore_exceptions."""
    log = map_app.Log()
    before = log.count.remote()
    assert log.add.for_each(range(10)) is None
    assert log.count.remote() == before + 10
    with pytest.raises(ValueError, match="input 3"):
        map_app.fail_at.for_each(range(10), kwargs={"at": 3})
    map_app.fail_at.for_each(range(10), kwargs={"at": 3}, ignore_exceptions=True)


def test_spawn_map() -> None:
    """spawn_map starts one durable call with an input for each item; results by index, in order."""
    call = map_app.double.spawn_map(range(300))
    assert call.num_inputs() == 300
    assert list(call.iter()) == list(range(0, 600, 2))
    assert call.get(index=7, timeout=20) == 14
    again = FunctionCall.from_id(call.object_id)
    assert again.num_inputs() == 300
    assert list(FunctionCall.from_id(call.object_id).iter(start=298)) == [596, 598]


def test_results_of_spawn_map_are_iterated_small_and_large() -> None:
    """Results of any sizes beside each other; an iteration that is given up leaves nothing open."""
    before = len(os.listdir("/proc/self/fd"))
    values = [bytes(200_000 if number % 10 > 7 else 1) for number in range(100)]
    call = map_app.double.spawn_map(values)
    assert list(map(len, call.iter())) == [2 * len(value) for value in values]
    begun = call.iter()
    assert [len(next(begun)) for _ in range(7)] == [2] * 7
    begun.close()

    async def iterate() -> list[int]:
        return [len(result) async for result in call.iter.aio()]

    assert asyncio.run(iterate()) == [2 * len(value) for value in values]
    del begun
    assert len(os.listdir("/proc/self/fd")) < before + 10  # the large ones that nobody took are more


def test_the_first_failure_is_raised_and_the_rest_cancelled() -> None:
    """Without return_exceptions the first failure raises and the remaining inputs are cancelled."""
    log = map_app.Log()
    begin = log.count.remote()
    with pytest.raises(ValueError, match="input 3"):
        list(log.add.map(range(500), kwargs={"fail": 3, "pause": 0.1}))
    after = log.count.remote()  # runs behind whatever was not cancelled
    assert after - begin < 100


def test_the_earliest_failing_index_is_raised() -> None:
    """In ordered mode the earliest failing index is the one raised, even where a later one fails sooner."""
    list(map_app.sleep_and_fail.starmap([(0, ""), (0, "")]))
    with pytest.raises(ValueError, match="slow one"):
        list(map_app.sleep_and_fail.starmap([(0.5, "slow one"), (0, "quick one")]))


def test_return_exceptions() -> None:
    """With return_exceptions the exceptions stand in the result list as they are."""
    results = list(map_app.fail_at.map(range(5), kwargs={"at": 2}, return_exceptions=True))
    assert results[:2] + results[3:] == [0, 1, 3, 4]
    assert type(results[2]) is ValueError
    assert results[2].args == ("input 2",)


def test_an_exception_of_the_input_iterator_propagates() -> None:
    """An exception raised by the input iterator propagates."""

    def inputs() -> Iterator[int]:
        yield 1
        raise KeyError("in the iterator")

    for ordered in (True, False):
        with pytest.raises(KeyError, match="in the iterator"):
            list(map_app.double.map(inputs(), order_outputs=ordered))

    async def async_inputs() -> AsyncIterator[int]:
        yield 1
        raise KeyError("in the iterator")

    async def main() -> list[Any]:
        return [x async for x in map_app.double.map.aio(async_inputs())]

    with pytest.raises(KeyError, match="in the iterator"):
        asyncio.run(main())


def test_an_input_that_cannot_be_pickled_is_raised() -> None:
    """An input that cannot be sent is a SerializationError, in the list and in the iterator form."""
    import threading

    with pytest.raises(errors.SerializationError, match="lock"):
        list(map_app.double.map([1, threading.Lock()]))
    with pytest.raises(errors.SerializationError, match="lock"):
        list(map_app.double.map(iter([1, threading.Lock()])))


def test_breaking_out_cancels_what_is_outstanding() -> None:
    """Breaking out of the loop cancels what is outstanding."""
    log = map_app.Log()
    begin = log.count.remote()
    for _ in log.add.map(range(500), kwargs={"pause": 0.1}):
        break
    assert log.count.remote() - begin < 100


def test_cancelling_the_task_of_an_async_map() -> None:
    """Cancelling the task that iterates cancels what is outstanding."""
    log = map_app.Log()
    begin = log.count.remote()

    async def main() -> None:
        async def consume() -> None:
            async for _ in log.add.map.aio(range(500), kwargs={"pause": 0.1}):
                started.set()

        started = asyncio.Event()
        task = asyncio.create_task(consume())
        await asyncio.wait_for(started.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert log.count.remote() - begin < 100


def test_inputs_run_one_at_a_time_on_the_main_thread() -> None:
    """Without @concurrent a container runs one input at a time, on its main thread."""
    log = map_app.Log()
    list(log.add.map(range(50)))
    assert log.where.remote() == (1, True)


def test_several_containers_share_a_map() -> None:
    """A map scales out: inputs run in parallel in several containers."""
    assert len(set(map_app.identity_after.map([0.5] * 8))) > 1


@pytest.mark.parametrize("count", [0, 10, 3_000])
def test_a_map_in_a_container(count: int) -> None:
    """map inside a container works (nested)."""
    assert map_app.nested.remote(count) == list(range(0, 2 * count, 2))


def test_maps_in_maps_in_containers() -> None:
    """Nested maps of maps, and async ones, work."""
    assert map_app.nested_twice.remote(5) == sum(2 * x for n in range(5) for x in range(n))
    assert sorted(map_app.nested_async.remote(100)) == list(range(0, 200, 2))


def test_two_maps_at_once(eventually: Callable[..., None]) -> None:
    """Two maps interleaved by one consumer do not hinder each other."""
    first, second = map_app.double.map(range(2_000)), map_app.combine.map(range(2_000))
    for n, (a, b) in enumerate(zip(first, second, strict=True)):
        assert (a, b) == (2 * n, (n, None, None))


def test_a_slow_consumer_gets_everything() -> None:
    """Results wait for a consumer that takes its time, beyond the window."""
    results = map_app.double.map(range(3_000))
    assert next(results) == 0
    time.sleep(0.5)
    assert list(results) == list(range(2, 6_000, 2))
