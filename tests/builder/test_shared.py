"""Work that several wait for is done once."""

import asyncio

import pytest

from farcall.builder.shared import Say, SharedWork


def test_work_is_done_once_and_heard_by_all():
    async def scenario() -> tuple[list[int], list[list[str]], int]:
        shared: SharedWork[int] = SharedWork()
        go, said = asyncio.Event(), asyncio.Event()
        begun = 0

        async def work(say: Say) -> int:
            nonlocal begun
            begun += 1
            say("one")
            said.set()
            await go.wait()
            say("two")
            return 7

        heard: list[list[str]] = [[], [], []]
        tasks = [asyncio.create_task(shared.do("key", work, lines.append)) for lines in heard]
        await said.wait()
        go.set()
        return await asyncio.gather(*tasks), heard, begun

    results, heard, begun = asyncio.run(scenario())
    assert (results, heard, begun) == ([7] * 3, [["one", "two"]] * 3, 1)


def test_one_who_leaves_does_not_end_it_for_the_others():
    async def scenario() -> int:
        shared: SharedWork[int] = SharedWork()
        go = asyncio.Event()

        async def work(say: Say) -> int:
            await go.wait()
            return 7

        first, second = (asyncio.create_task(shared.do("key", work, lambda line: None)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go.set()
        return await second

    assert asyncio.run(scenario()) == 7


def test_the_last_who_leaves_ends_it_and_waits_for_its_end():
    async def scenario() -> list[str]:
        shared: SharedWork[int] = SharedWork()
        happened: list[str] = []

        async def work(say: Say) -> int:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                happened.append("ended")
            return 7

        task = asyncio.create_task(shared.do("key", work, lambda line: None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        happened.append("returned")
        assert shared.count == 0
        return happened

    assert asyncio.run(scenario()) == ["ended", "returned"]


def test_a_failure_is_everybodys_and_the_next_begins_anew():
    async def scenario() -> int:
        shared: SharedWork[int] = SharedWork()
        begun = 0

        async def work(say: Say) -> int:
            nonlocal begun
            begun += 1
            await asyncio.sleep(0)
            if begun == 1:
                raise ValueError("no")
            return begun

        results = await asyncio.gather(
            *(shared.do("key", work, lambda line: None) for _ in range(2)), return_exceptions=True
        )
        assert [type(result) for result in results] == [ValueError, ValueError]
        return await shared.do("key", work, lambda line: None)

    assert asyncio.run(scenario()) == 2
