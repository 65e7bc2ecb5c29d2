"""The app that the fault tests put under load."""

import time

import farcall

app = farcall.App("faults")


@app.function(retries=farcall.Retries(max_retries=50, initial_delay=0.0, backoff_coefficient=1.0), max_containers=3)
def square(x: int) -> int:
    """Long enough that a kill finds it running, most of the time."""
    time.sleep(0.02)
    return x * x


@app.function()
def plain(x: int) -> int:
    return x + 1


@app.function()
def size(data: bytes) -> int:
    return len(data)


@app.function()
def grow(length: int, seconds: float = 0.0) -> bytes:
    time.sleep(seconds)
    return bytes(length)


@app.function(retries=farcall.Retries(max_retries=1, initial_delay=60.0))
def fail(word: str) -> None:
    raise ValueError(word)
