"""A program that asks for more than there may be: COUNT calls of SIZE bytes that wait behind one that does not end.

It says when all that does not fit was turned away, and, once it is told to go on, what became of each call.
"""

import asyncio
import contextlib
import itertools
import json
import sys
import time

import farcall

app = farcall.App("greedy")


@app.function(max_containers=1, timeout=600)
def work(index: int, data: bytes = b"") -> int:
    if index == 0:
        time.sleep(500)
    return index


async def flood(count: int, size: int, turned_away: int) -> None:
    spawned = await work.spawn_map.aio(range(10_000, 10_300))
    tasks = [asyncio.create_task(work.remote.aio(index, bytes(size))) for index in range(count)]
    for ended in itertools.islice(asyncio.as_completed(tasks), turned_away):
        with contextlib.suppress(farcall.errors.OverloadedError):
            await ended
    print("flooded", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    tasks[0].cancel()
    every = await asyncio.gather(*tasks, return_exceptions=True)
    print(
        json.dumps(
            {
                "answered": [value for value in every if isinstance(value, int)],
                "errors": sorted({type(value).__name__ for value in every if isinstance(value, Exception)}),
                "said": [str(value) for value in every if isinstance(value, Exception)],
                "spawned": [value async for value in spawned.iter.aio()],
            }
        )
    )


if __name__ == "__main__":
    with app.run():
        asyncio.run(flood(*map(int, sys.argv[1:])))
