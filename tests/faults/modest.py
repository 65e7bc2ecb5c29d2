"""A program that asks for little, again and again, and then for a bit more at once."""

import asyncio
import time

import farcall

app = farcall.App("modest")


@app.function(max_containers=2)
def double(x: int, seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return 2 * x


async def together(count: int) -> list[int]:
    """Nearly all of them wait for each other."""
    return await asyncio.gather(*(double.remote.aio(x, 0.01) for x in range(count)))


if __name__ == "__main__":
    with app.run():
        assert [double.remote(x) for x in range(50)] == list(range(0, 100, 2))
        assert asyncio.run(together(400)) == list(range(0, 800, 2))
        assert list(double.map(range(500))) == list(range(0, 1000, 2))
        print("answered")
