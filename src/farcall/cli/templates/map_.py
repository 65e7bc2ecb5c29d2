"""Run it with `farcall run FILE`; with `--upto 200000` it works longer."""

import farcall

app = farcall.App("primes")


# Each call of a decorated function runs in a container of its own environment. What it needs stands in the decorator:
# cpu=, memory=, timeout=, retries=, ...
@app.function(timeout=60)
def count_primes(start: int, stop: int) -> int:
    """How many primes there are from `start` to below `stop`."""
    found = 0
    for number in range(max(start, 2), stop):
        if all(number % divisor for divisor in range(2, int(number**0.5) + 1)):
            found += 1
    print(f"{found} primes from {start} to {stop}")  # shown as it happens
    return found


# The entrypoint runs on your machine; its parameters are the command's arguments.
@app.local_entrypoint()
def main(upto: int = 40_000, step: int = 2_000) -> None:
    one = count_primes.remote(0, 100)  # one call, in a container
    print(f"below 100: {one}")

    ranges = [(start, start + step) for start in range(0, upto, step)]
    total = sum(
        count_primes.starmap(ranges)
    )  # many calls, in parallel, over as many containers as the machine has room for
    print(f"below {upto}: {total}")
