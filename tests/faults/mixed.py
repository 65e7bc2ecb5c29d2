"""The app under load in the kills and the soak: one function for each way of running inputs.

Each prints which input it runs. What it returns is the square of that number and a word that no other execution
returns, so that it can be told from which execution a result is.
"""

import asyncio
import os
import random
import time
from collections.abc import Iterator

import farcall

# A kill is nobody's fault but the test's, so there is budget for as many as there may be.
PATIENT = farcall.Retries(max_retries=50, initial_delay=0.0, backoff_coefficient=1.0)
TWICE = farcall.Retries(max_retries=2, initial_delay=0.05, backoff_coefficient=1.0)
SMALL = {"cpu": 0.05, "memory": 64, "max_containers": 2}

app = farcall.App("soak")
volume = farcall.Volume.from_name("soak", create_if_missing=True)

Answer = tuple[int, str]


def run(number: int) -> Answer:
    print(f"run {number};")
    return number * number, os.urandom(8).hex()


@app.function(retries=PATIENT, **SMALL)
def square(number: int, padding: bytes = b"") -> Answer:
    """Long enough that a kill finds it running, most of the time."""
    time.sleep(0.02)
    return run(number)


@app.function(**SMALL)
def once(number: int, seconds: float = 0.02) -> Answer:
    """Has no budget: its container's end is its own."""
    time.sleep(seconds)
    return run(number)


@app.function(retries=PATIENT, **SMALL)
def flaky(number: int) -> Answer:
    answer = run(number)
    if random.random() < 0.3:
        raise RuntimeError("this attempt fails")
    return answer


@app.function(retries=TWICE, **SMALL)
def fussy(number: int) -> Answer:
    if number % 5 == 0:
        raise ValueError(number)
    return run(number)


@app.function(retries=PATIENT, **SMALL)
def dawdle(number: int, seconds: float) -> Answer:
    answer = run(number)
    time.sleep(seconds)
    return answer


@app.function(**SMALL)
def count(number: int, items: int) -> Iterator[int]:
    run(number)
    for item in range(items):
        yield number + item
        time.sleep(0.001)


@app.function(retries=PATIENT, **SMALL)
@farcall.concurrent(max_inputs=8)
async def beside(number: int) -> Answer:
    answer = run(number)
    await asyncio.sleep(0.02)
    return answer


@app.function(retries=PATIENT, **SMALL)
@farcall.concurrent(max_inputs=4)
def threaded(number: int) -> Answer:
    time.sleep(0.02)
    return run(number)


@app.function(retries=PATIENT, **SMALL)
@farcall.batched(max_batch_size=8, wait_ms=20)
def batch(number: list[int]) -> list[Answer]:
    time.sleep(0.02)
    return [run(one) for one in number]


@app.function(retries=PATIENT, **SMALL)
def nested(number: int, inputs: int) -> list[Answer]:
    return list(square.map(range(number, number + inputs)))


@app.cls(retries=PATIENT, **SMALL)
class Table:
    factor: int = farcall.parameter(default=1)

    @farcall.enter()
    def enter(self) -> None:
        self.entered = getattr(self, "entered", 0) + 1

    @farcall.method()
    def multiply(self, number: int) -> Answer:
        assert self.entered == 1
        time.sleep(0.01)
        product, word = run(number)
        return product * self.factor, word


@app.function(retries=PATIENT, volumes={"/volume": volume}, **SMALL)
def keep(number: int) -> Answer:
    """Its file is kept once this has returned."""
    answer = run(number)
    with open(f"/volume/{number}.part", "w") as file:
        file.write(f"{number} " * 1000)
    os.rename(f"/volume/{number}.part", f"/volume/{number}")
    volume.commit()
    return answer
