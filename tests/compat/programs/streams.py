"""Asynchronous code: an async entrypoint, generators, async iterables into a map."""

# runs: farcall run streams.py

import asyncio

import modal

app = modal.App("streams")


@app.function()
async def echo(x):
    await asyncio.sleep(0)
    return x


@app.function()
def lines(n: int):
    for number in range(n):
        yield f"line {number}"


@app.function()
async def alines(n: int):
    for number in range(n):
        yield number


@app.local_entrypoint()
async def main(n: int = 3):
    print(await echo.remote.aio("hello"))
    print(await asyncio.gather(*[echo.remote.aio(x) for x in range(n)]))

    async def numbers():
        for number in range(n):
            yield number

    print([x async for x in echo.map.aio(numbers())])
    print([x async for x in lines.remote_gen.aio(2)], [x async for x in alines.remote_gen.aio(2)])
    call = await echo.spawn.aio("later")
    print(await call.get.aio())
    print(sorted([x async for x in echo.map.aio([3, 1], order_outputs=False)]))


# prints:
# hello
# [0, 1, 2]
# [0, 1, 2]
# ['line 0', 'line 1'] [0, 1]
# later
# [1, 3]
