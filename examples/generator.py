"""A generator: items arrive one by one, while the function goes on computing the next.

    farcall run examples/generator.py --above 1000000 --count 5

The function never ends by itself. Leaving the loop closes the generator in its container.
"""

from collections.abc import Iterator
from itertools import count as count_from
from math import isqrt

import farcall

app = farcall.App("generator")


@app.function()
def primes(above: int) -> Iterator[int]:
    try:
        for number in count_from(above + 1):
            if number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1)):
                yield number
    finally:
        print("the generator was closed")


@app.local_entrypoint()
def main(above: int = 1_000_000, count: int = 5) -> None:
    for position, prime in enumerate(primes.remote_gen(above), start=1):
        print(prime)
        if position == count:
            break
