"""`python -m bench burst`: load, containers and latency while a burst comes and goes, as a picture of a real run.

Inputs of 0.2 s arrive at random times, few, then many, then few again, whether or not earlier ones are done.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench import functions
from bench.measure import farcall_environment

QUIET, BURST = 4.0, 120.0  # inputs a second
BEGIN, END, LENGTH = 5.0, 17.0, 34.0  # of the burst and of all, seconds
SLEEP = 0.2
SAMPLE_SECONDS = 0.1


class Sample(NamedTuple):
    """What there was at a moment, in seconds since the begin."""

    at: float
    inputs: int
    containers: int


@dataclass
class Seen:
    """A whole run. `latencies` are pairs: when an input arrived, and how long it took, in seconds."""

    arrivals: list[float]
    latencies: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    samples: list[Sample] = field(default_factory=list[Sample])


def _arrivals() -> list[float]:
    rng = random.Random(4)
    times: list[float] = []
    at = 0.0
    while True:
        # Poisson arrivals; the rate changes rarely enough for the one at the last arrival to do.
        at += rng.expovariate(BURST if BEGIN <= at < END else QUIET)
        if at >= LENGTH:
            return times
        times.append(at)


async def _run() -> Seen:
    seen = Seen(_arrivals())
    begin = time.monotonic()
    open_inputs = 0

    async def one(arrival: float) -> None:
        nonlocal open_inputs
        await asyncio.sleep(arrival - (time.monotonic() - begin))
        arrived = time.monotonic()
        open_inputs += 1
        await functions.in_a_burst.remote.aio(SLEEP)
        open_inputs -= 1
        seen.latencies.append((arrived - begin, time.monotonic() - arrived))

    async def sample() -> None:
        while True:
            stats = await functions.in_a_burst.get_current_stats.aio()
            seen.samples.append(Sample(time.monotonic() - begin, open_inputs, stats.num_total_runners))
            await asyncio.sleep(SAMPLE_SECONDS)

    sampling = asyncio.create_task(sample())
    await asyncio.gather(*map(one, seen.arrivals))
    await asyncio.sleep(begin + LENGTH - time.monotonic())
    sampling.cancel()
    return seen


def draw(seen: Seen, path: Path) -> None:
    """Three panels over one axis of time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (load, containers, latency) = pyplot.subplots(
        3, 1, sharex=True, figsize=(10, 7), height_ratios=(1, 1.6, 1.2)
    )
    seconds = range(int(LENGTH))
    counts = [sum(second <= at < second + 1 for at in seen.arrivals) for second in seconds]
    load.bar([second + 0.5 for second in seconds], counts, width=1.0, color="tab:gray")
    load.set(ylabel="inputs arriving\nin a second")
    at = [sample.at for sample in seen.samples]
    containers.plot(at, [sample.inputs for sample in seen.samples], color="tab:gray", lw=1, label="inputs in flight")
    containers.step(
        at, [sample.containers for sample in seen.samples], where="post", color="tab:orange", label="containers"
    )
    containers.legend(frameon=False)
    containers.set(ylabel="at that moment")
    latency.scatter(*zip(*seen.latencies, strict=True), s=4, color="tab:blue", linewidths=0)
    latency.axhline(SLEEP, color="black", lw=0.8, ls=":")
    latency.set(ylabel="seconds until\nits result", xlabel="seconds", xlim=(0, LENGTH), ylim=(0, None))
    for axes in (load, containers, latency):
        axes.spines[["top", "right"]].set_visible(False)
    load.set_title(f"Inputs of {SLEEP} s at cpu=0.01, scaledown_window=5", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(path: Path) -> None:
    """Runs, prints, draws."""
    with farcall_environment(), functions.app.run():
        functions.in_a_burst.remote(0)
        seen = asyncio.run(_run())
    taken = sorted(seconds for _, seconds in seen.latencies)
    print(f"{len(taken)} inputs, at most {max(sample.containers for sample in seen.samples)} containers")
    for percent in (50, 95, 99):
        print(f"{percent} % of the inputs took at most {taken[len(taken) * percent // 100]:.2f} s")
    draw(seen, path)
    print(path)
