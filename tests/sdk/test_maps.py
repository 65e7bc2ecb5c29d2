"""Maps with a real server: lazily read, bounded, and over when they end, however they end."""

import importlib
import itertools
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from farcall.sdk import client
from farcall.sdk.maps import WINDOW
from tests.conftest import Installation


@pytest.fixture(scope="module")
def app(server: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Functions to map, run by this process."""
    folder = tmp_path_factory.mktemp("maps")
    (folder / "mapped.py").write_text(
        "import time\n"
        "import farcall\n"
        "app = farcall.App('maps')\n"
        "@app.function(max_containers=2)\n"
        "def double(x):\n"
        "    return 2 * x\n"
        "@app.function(max_containers=2)\n"
        "def large(x):\n"
        "    return bytes(100_000)\n"
        "@app.function(max_containers=2)\n"
        "def nap(seconds):\n"
        "    time.sleep(seconds)\n"
        "    return seconds\n"
        "@app.function()\n"
        "def inverse(x):\n"
        "    return 1 / x\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        patch.setattr(client, "_current", None)  # another test's server is not to be used
        sys.modules.pop("mapped", None)
        mapped = importlib.import_module("mapped")
        with mapped.app.run():
            mapped.double.remote(0)
            yield mapped
        client.current().close()


def feeders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("farcall-map")]


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_iterator_is_read_no_further_ahead_than_the_window(app: Any) -> None:
    read = itertools.count()
    results = app.double.map(next(read) for _ in itertools.count())
    assert next(results) == 0
    wait_until(lambda: feeders())
    last = -1
    while (now := next(read)) != last + 1:  # until nobody reads it any more
        last = now
        time.sleep(0.05)
    assert last <= WINDOW + 64
    results.close()


def test_breaking_out_of_an_infinite_map_ends_it(app: Any) -> None:
    for result in app.double.map(itertools.count()):
        if result > 500:
            break
    wait_until(lambda: not feeders())
    assert app.double.remote(4) == 8


def test_an_iterator_that_raises_ends_the_map_with_its_error(app: Any) -> None:
    def inputs() -> Iterator[int]:
        yield 1
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(app.double.map(inputs()))
    wait_until(lambda: not feeders())


def test_an_input_may_depend_on_an_earlier_result(app: Any) -> None:
    results: queue.Queue[int] = queue.Queue()
    results.put(1)

    def inputs() -> Iterator[int]:
        while (x := results.get(timeout=20)) < 1000:
            yield x

    got: list[int] = []
    for result in app.double.map(inputs()):
        results.put(result)
        got.append(result)
    assert got == [2**n for n in range(1, 11)]


def test_an_input_may_depend_on_one_of_several_earlier_results(app: Any) -> None:
    """Lone inputs are sent also while others run."""
    results: queue.Queue[float] = queue.Queue()

    def inputs() -> Iterator[float]:
        yield 0.3
        yield 0.0
        results.get(timeout=20)  # whichever comes first; the other may run for a while yet
        yield 0.01

    got: list[float] = []
    for result in app.nap.map(inputs(), order_outputs=False):
        results.put(result)
        got.append(result)
    assert sorted(got) == [0.0, 0.01, 0.3]


def test_inputs_are_sent_while_the_consumer_is_away(app: Any) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def inputs() -> Iterator[int]:
        yield 1
        begun.wait(20)
        yield from range(2, 6)
        go_on.wait(20)

    from farcall.sdk import maps

    # Its numbers are looked at while nobody takes results.
    call, make_feeder = maps._prepare(  # pyright: ignore[reportPrivateUsage]
        app.double._target, (inputs(),), {}, True, False, False
    )
    try:
        make_feeder(call)
        begun.set()
        wait_until(lambda: call.statistics().sent == 5)
    finally:
        go_on.set()
        call.close()


def test_failures_are_counted_as_they_arrive(app: Any) -> None:
    """Also those behind the one that the map raises."""
    from farcall.sdk import maps

    call, make_feeder = maps._prepare(  # pyright: ignore[reportPrivateUsage]
        app.inverse._target, ([1, 0, 0, 2, 0],), {}, True, False, False
    )
    try:
        make_feeder(call).feed()
        while call.statistics().received < 5:
            call.waiter.clear()
            call.client.connection.wait(call.waiter)
        results = call.results()
        assert next(results) == 1.0
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert call.statistics().failed == 3
    finally:
        call.close()


def test_results_of_a_slow_consumer_wait_and_none_is_lost(app: Any) -> None:
    results = app.double.map(range(3000))
    assert next(results) == 0
    time.sleep(0.2)
    assert list(results) == [2 * x for x in range(1, 3000)]


def test_more_large_results_than_open_files_are_allowed_by_default(app: Any) -> None:
    assert sum(len(result) for result in app.large.map(range(1500))) == 1500 * 100_000


def test_maps_in_many_threads_share_the_connection(app: Any) -> None:
    sums: list[int] = []
    threads = [
        threading.Thread(target=lambda: sums.append(sum(app.double.map(x for x in range(500))))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sums == [sum(range(500)) * 2] * 4


def test_an_asynchronous_iterable_feeds_an_asynchronous_map(app: Any) -> None:
    import asyncio

    async def inputs() -> AsyncIterator[int]:
        for x in range(200):
            yield x

    async def main() -> list[int]:
        return [result async for result in app.double.map.aio(inputs())]

    assert asyncio.run(main()) == [2 * x for x in range(200)]


def test_an_asynchronous_map_can_be_left(app: Any) -> None:
    import asyncio

    async def main() -> None:
        results = app.double.map.aio(itertools.count())
        async for result in results:
            if result > 100:
                break
        await results.aclose()

    asyncio.run(main())
    wait_until(lambda: not feeders())


def test_a_finished_map_leaves_nothing_open(app: Any) -> None:
    list(app.large.map(range(10)))
    assert not client.current()._calls  # pyright: ignore[reportPrivateUsage]
