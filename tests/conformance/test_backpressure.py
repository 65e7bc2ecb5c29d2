"""Backpressure: a slow consumer of a map slows its producer, by the number of values and by their size."""

import asyncio
import threading
import time
from collections.abc import Iterator

import backpressure_app
import pytest
from backpressure_app import app  # noqa: F401 - the fixture runs it

from farcall.sdk import client
from tests.memory import MIB, memory_files, on_each_machine, server_pid

WINDOW = 16  # MiB
AHEAD = 16  # MiB that may be under way when the window is full: what a container was handed, or a chunk
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.current(), "map_memory", WINDOW * MIB)


@pytest.mark.parametrize("ordered", [True, False])
def test_results_that_are_not_taken_hold_the_producer_back(ordered: bool) -> None:
    maker = backpressure_app.Maker()
    before = maker.count.remote()
    results = maker.block.map([MIB] * 300, order_outputs=ordered)
    assert len(next(results)) == MIB
    # Were the others not held back, they would be run before this.
    assert maker.count.remote() - before < WINDOW + AHEAD
    assert all(memory_files(*pids) < (WINDOW + AHEAD) * MIB for pids in on_each_machine())
    for _ in range(40):
        next(results)
    assert maker.count.remote() - before < 41 + WINDOW + AHEAD
    for _ in range(20):  # nothing that takes time brings more
        assert maker.count.remote() - before < 41 + WINDOW + AHEAD
    assert sum(len(result) for result in results) == (300 - 41) * MIB
    assert maker.count.remote() - before == 300


def test_a_map_that_is_given_up_leaves_nothing() -> None:
    """What was held back is forgotten, too."""
    maker = backpressure_app.Maker()
    results = maker.block.map([MIB] * 100)
    next(results)
    before = maker.count.remote()
    assert backpressure_app.Maker().block.get_current_stats().backlog > 50
    results.close()
    assert maker.count.remote() < before + AHEAD
    assert backpressure_app.Maker().block.get_current_stats().backlog == 0
    assert memory_files(server_pid()) < AHEAD * MIB


def test_results_that_are_not_taken_by_a_task_hold_the_producer_back() -> None:
    """The event loop reads whatever comes; what comes is bounded all the same."""

    async def main() -> int:
        maker = backpressure_app.Maker()
        before = await maker.count.remote.aio()
        results = maker.block.map.aio([MIB] * 300)
        assert len(await anext(results)) == MIB
        made = await maker.count.remote.aio() - before
        total = 1
        async for _ in results:
            total += 1
        assert total == 300
        return made

    assert asyncio.run(main()) < WINDOW + AHEAD


def test_large_inputs_wait_in_the_program() -> None:
    """Inputs are not read while those that have no result are as large as may be."""
    gate = backpressure_app.Gate()
    assert not gate.ping.remote()
    made = 0
    sizes: list[int] = []

    def inputs() -> Iterator[bytes]:
        nonlocal made
        for _ in range(100):
            made += 1
            yield bytes(MIB)

    consumer = threading.Thread(target=lambda: sizes.extend(gate.enter.map(inputs())))
    consumer.start()
    try:
        deadline = time.monotonic() + PATIENCE
        while made < WINDOW:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for _ in range(50):  # nothing that takes time brings more
            assert not gate.ping.remote()
        assert made <= WINDOW + AHEAD
        assert all(memory_files(*pids) <= (WINDOW + AHEAD) * MIB for pids in on_each_machine())
    finally:
        gate.open.remote()
        consumer.join()
    assert sizes == [MIB] * 100


def test_the_result_that_an_ordered_consumer_waits_for_is_not_held_back() -> None:
    """The first input ends after the others have filled the window."""
    results = list(backpressure_app.late.map(range(60), kwargs={"size": MIB}))
    assert [int.from_bytes(result[:8]) for result in results] == list(range(60))


@pytest.mark.parametrize("ordered", [True, False])
def test_one_value_may_be_larger_than_the_window(monkeypatch: pytest.MonkeyPatch, ordered: bool) -> None:
    monkeypatch.setattr(client.current(), "map_memory", 1)
    results = backpressure_app.late.map(range(20), kwargs={"size": 100_000}, order_outputs=ordered)
    assert sorted(int.from_bytes(result[:8]) for result in results) == list(range(20))
    gate = backpressure_app.Gate()
    gate.open.remote()
    assert list(gate.enter.map([bytes(100_000)] * 20, order_outputs=ordered)) == [100_000] * 20


def test_a_map_in_a_container_is_held_back_as_well() -> None:
    """It ends: what its container takes, the server hears of."""
    assert backpressure_app.large_map.remote(400, MIB) == 400 * (MIB + 8)
