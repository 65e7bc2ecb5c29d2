"""The scheduler and the autoscaler alone, in this process: no server, no containers."""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager

from bench.peers import Measurement, Result, run
from bench.samples import median, timed
from farcall.server.autoscaler import Autoscaler, Load
from farcall.server.demand import Placement
from farcall.server.resources import Capacity, Gpus, Request
from farcall.server.scheduler import Scheduler
from farcall.spec.gpu import GpuRequest
from farcall.spec.scaling import Scaling

NAME = "farcall"
WORKERS = 1_000
GPU_TYPES = (("T4", 4, 16), ("L4", 4, 24), ("A100-40GB", 8, 40), ("A100-80GB", 8, 80), ("H100", 8, 80))
DEMANDS, EACH, ROUNDS = 200, 25, 4
FUNCTIONS = 10_000
GIB = 1024


def _cluster() -> Scheduler:
    """Workers of three sizes; every fifth has GPUs."""
    scheduler = Scheduler()
    for number in range(WORKERS):
        gpus: tuple[Gpus, ...] = ()
        if number % 5 == 0:
            kind, count, memory = GPU_TYPES[number // 5 % len(GPU_TYPES)]
            gpus = (Gpus(kind, tuple(range(count)), memory * GIB),)
        cores = (16, 32, 96)[number % 3]
        capacity = Capacity(cores * 1000, cores * 4 * GIB, 1000 * GIB, gpus, making=100, loading=1000)
        scheduler.add_worker(f"w{number}", capacity, [f"im-{number % 20}"])
    return scheduler


def _requests(count: int) -> list[Request]:
    rng = random.Random(4)
    wanted = [(), (), (), *((GpuRequest(kind),) for kind, _, _ in GPU_TYPES), (GpuRequest("H100"), GpuRequest("A100"))]
    return [
        Request(
            cpu=rng.choice([125, 500, 1000, 4000]),
            memory=rng.choice([128, 512, 2048, 8192]),
            gpus=rng.choice(wanted),
            image_id=f"im-{rng.randrange(30)}",
        )
        for _ in range(count)
    ]


def placements() -> Iterator[Result]:
    scheduler = _cluster()
    demands = [
        scheduler.demand(f"app{number % 40}", f"app{number % 40}", f"f{number}", request)
        for number, request in enumerate(_requests(DEMANDS))
    ]
    placed = 0
    taken = 0.0
    for _ in range(ROUNDS):
        running: list[Placement] = []
        begin = time.perf_counter()
        for demand in demands:
            scheduler.want(demand, EACH, EACH, 0, 0.0)
        running += scheduler.schedule(0.0).place
        taken += time.perf_counter() - begin
        placed += len(running)
        begin = time.perf_counter()
        for placement in running:
            scheduler.ready(placement)
            scheduler.busy(placement)
        for placement in running:
            scheduler.release(placement)
        taken += time.perf_counter() - begin
        for demand in demands:
            scheduler.want(demand, 0, 0, 0, 0.0)
    if placed < ROUNDS * DEMANDS * EACH / 2:
        raise AssertionError(f"only {placed} of {ROUNDS * DEMANDS * EACH} containers found room")
    yield Result("placements", NAME, placed / taken, placed)


def autoscaler() -> Iterator[Result]:
    rng = random.Random(4)
    scalers = [Autoscaler(Scaling(scaledown_window=60)) for _ in range(FUNCTIONS)]
    loads = [Load(rng.randrange(50), rng.randrange(50), rng.choice([None, 0.01, 1.0]), 0.5) for _ in range(FUNCTIONS)]
    clock = 0.0

    def once() -> None:
        nonlocal clock
        clock += 1.0
        for scaler, load in zip(scalers, loads, strict=True):
            scaler.evaluate(load, clock)

    taken = timed(once, 9)
    yield Result("10,000 functions", NAME, 1e3 * median(taken), len(taken))


@contextmanager
def peer() -> Generator[Mapping[str, Measurement]]:
    yield {"placements": placements, "autoscaler": autoscaler}


if __name__ == "__main__":
    run(peer)
