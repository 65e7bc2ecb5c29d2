"""A program that asks for little, again and again, and then for a bit more at once."""

import asyncio

import farcall

app = farcall.App("modest")


@app.function(max_containers=2)
def double(x: int) -> int:
    return 2 * x


async def together(count: int) -> list[int]:
    return await asyncio.gather(*(double.remote.aio(x) for x in range(count)))


if __name__ == "__main__":
    with app.run():
        assert [double.remote(x) for x in range(50)] == list(range(0, 100, 2))
        assert asyncio.run(together(400)) == list(range(0, 800, 2))
        assert list(double.map(range(500))) == list(range(0, 1000, 2))
        print("answered")
