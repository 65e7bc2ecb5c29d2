"""The scheduler over random traces, beside a model that adds up everything anew after each step."""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farcall.errors import ResourceExhaustedError
from farcall.server.demand import Demand, Placement
from farcall.server.resources import Capacity, Gpus, Request
from farcall.server.scheduler import Scheduler
from farcall.spec.gpu import GpuRequest

GIB = 1024
TYPES = ("T4", "A100-40GB", "A100-80GB", "H100")
WANTED = ("T4", "A100", "A100-80GB", "any")
STEPS = 120


@dataclass
class World:
    """A scheduler, and what was said to it and by it. The worker `w0` never goes."""

    rng: random.Random
    scheduler: Scheduler = field(default_factory=Scheduler)
    capacities: dict[str, Capacity] = field(default_factory=dict[str, Capacity])
    demands: list[Demand] = field(default_factory=list[Demand])
    running: list[Placement] = field(default_factory=list[Placement])
    wanted: dict[Demand, int] = field(default_factory=dict[Demand, int])
    floors: dict[Demand, int] = field(default_factory=dict[Demand, int])
    firsts: set[Placement] = field(default_factory=set[Placement])
    busy: set[Placement] = field(default_factory=set[Placement])
    images: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    workers: int = 0
    now: float = 0.0

    # --- steps

    def add_worker(self) -> None:
        rng = self.rng
        gpus = tuple(Gpus(kind, tuple(range(rng.randint(1, 4)))) for kind in rng.sample(TYPES, rng.randint(0, 2)))
        cores = rng.choice([2, 8])
        overcommit = rng.choice([1.0, 4.0])
        making = rng.choice([1, 2, 50])
        capacity = Capacity(
            cores * 1000, rng.choice([2, 8]) * GIB, 10 * GIB, gpus, overcommit, making=making, loading=2 * making
        )
        name = f"w{self.workers}"
        self.workers += 1
        self.capacities[name] = capacity
        self.images[name] = {f"im-{rng.randrange(3)}"}
        self.scheduler.add_worker(name, capacity, self.images[name])

    def lose_worker(self) -> None:
        if len(self.capacities) > 1:
            name = self.rng.choice([name for name in self.capacities if name != "w0"])
            del self.capacities[name]
            there = [placement for placement in self.running if placement.worker_id == name]
            assert set(self.scheduler.remove_worker(name)) == set(there)
            for placement in there:
                self.forget(placement)

    def add_demand(self) -> None:
        rng = self.rng
        gpus = tuple(GpuRequest(rng.choice(WANTED), rng.randint(1, 2)) for _ in range(rng.choice([0, 0, 0, 1, 2])))
        request = Request(
            rng.choice([10, 125, 1000, 4000]),
            rng.choice([128, 500, 3000]),
            rng.choice([0, 0, 4000]),
            gpus,
            f"im-{rng.randrange(3)}",
        )
        app = f"app{rng.randrange(3)}"
        self.demands.append(self.scheduler.demand(app, app, f"f{len(self.demands)}", request))

    def change_demand(self) -> None:
        if self.demands:
            demand = self.rng.choice(self.demands)
            missing = self.rng.choice([0, 1, 2, 10])
            floor = self.rng.choice([0, 0, 1])
            self.floors[demand] = floor
            self.wanted[demand] = missing
            self.scheduler.want(demand, missing, self.rng.randint(0, missing), floor, self.now)

    def change_containers(self) -> None:
        for placement in self.rng.sample(self.running, min(3, len(self.running))):
            what = self.rng.choice(["made", "ready", "busy", "idle", "leaving", "release", "release"])
            if what in ("busy", "idle") and not placement.is_ready:
                what = "ready"
            getattr(self.scheduler, what)(placement)
            self.busy.discard(placement)
            if what == "busy":
                self.busy.add(placement)
            elif what == "release":
                self.forget(placement)

    def forget(self, placement: Placement) -> None:
        self.running.remove(placement)
        self.firsts.discard(placement)
        self.busy.discard(placement)

    def schedule(self) -> None:
        self.now += self.rng.choice([0.0, 0.1, 5.0, 40.0])
        before = {demand: self.staying(demand) for demand in self.demands}
        decisions = self.scheduler.schedule(self.now)
        for placement in decisions.place:
            if not before[placement.demand]:
                self.firsts.add(placement)
            before[placement.demand] += 1
            self.running.append(placement)
            self.wanted[placement.demand] -= 1
            assert self.wanted[placement.demand] >= 0, "one more was started than was wanted"
        for placement in decisions.evict:
            assert placement in self.running
            assert placement not in self.busy
            assert placement.is_ready
            assert placement.is_leaving
        for placement in (*decisions.evict, *decisions.retire):
            assert self.staying(placement.demand) >= self.floors.get(placement.demand, 0), "a floor was ended"
        for placement in decisions.retire:
            assert placement in self.running
            assert not placement.is_leaving

    # --- what must hold

    def staying(self, demand: Demand) -> int:
        return sum(one.demand is demand and not one.is_leaving and not one.is_retiring for one in self.running)

    def check(self) -> None:
        for name, capacity in self.capacities.items():
            there = [placement for placement in self.running if placement.worker_id == name]
            assert sum(one.request.memory for one in there) <= capacity.memory
            assert sum(one.request.disk for one in there) <= capacity.disk
            # The first container of a function is not held up by shares of cpu.
            bound = [one for one in there if capacity.cpu_overcommit == 1 or one not in self.firsts]
            assert sum(one.request.cpu for one in bound) <= capacity.cpu_shares
            used = Counter((one.gpu.type, number) for one in there for number in one.gpus)
            assert all(count == 1 for count in used.values()), "one GPU for two containers"
            assert set(used) <= {(gpus.type, number) for gpus in capacity.gpus for number in gpus.indices}
            assert sum(not one.is_made for one in there) <= capacity.making
        for placement in self.running:
            asked = placement.request.gpus
            assert len(placement.gpus) == placement.gpu.count
            assert not asked or any(
                one.accepts(placement.gpu.type) and one.count == placement.gpu.count for one in asked
            )
        for demand in self.demands:
            assert demand.live == self.staying(demand)
            assert demand.missing == self.wanted.get(demand, 0)

    def check_that_nobody_waits_for_what_is_free(self) -> None:
        """When all containers are gone and nothing is being started, whatever can run does."""
        for placement in list(self.running):
            self.scheduler.release(placement)
            self.forget(placement)
        for demand in self.demands:
            self.wanted[demand] = 0
            self.scheduler.want(demand, 0, 0, 0, self.now)
        for demand in self.demands:
            self.wanted[demand] = 1
            self.scheduler.want(demand, 1, 1, 0, self.now)
            try:
                self.scheduler.check(demand.name, demand.request)
                can = True
            except ResourceExhaustedError as error:
                assert self.scheduler.why(demand) == str(error)
                can = False
            placed = self.scheduler.schedule(self.now).place
            assert [one.demand for one in placed] == [demand] * can
            for placement in placed:
                self.scheduler.release(placement)
            self.wanted[demand] = 0
            self.scheduler.want(demand, 0, 0, 0, self.now)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_traces(seed: int) -> None:
    """Never over capacity, no GPU twice, no floor ended, none idle for nothing: whatever happens in whatever order."""
    world = World(random.Random(seed))
    world.add_worker()
    steps = [world.add_worker, world.lose_worker, world.add_demand, world.change_demand]
    steps += [world.change_containers, world.schedule]
    for _ in range(STEPS):
        world.rng.choices(steps, weights=[1, 0.5, 2, 5, 6, 6])[0]()
        world.check()
    world.check_that_nobody_waits_for_what_is_free()


@pytest.mark.parametrize("seed", range(3))
def test_the_same_trace_gives_the_same_decisions(seed: int) -> None:
    """What the simulation of a recorded trace says is what happens."""

    def decided() -> list[tuple[str, str, tuple[int, ...]]]:
        world = World(random.Random(seed))
        world.add_worker()
        for _ in range(STEPS):
            world.rng.choice([world.add_demand, world.change_demand, world.schedule])()
        return [(one.demand.name, one.worker_id, one.gpus) for one in world.running]

    first = decided()
    assert first
    assert decided() == first
