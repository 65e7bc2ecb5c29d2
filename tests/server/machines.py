"""Pools, containers and machines that exist only on paper: a clock that is advanced, and the real autoscaler and
scheduler."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from farcall.server.autoscaler import Autoscaler, Load
from farcall.server.demand import Placement
from farcall.server.resources import Capacity, Request
from farcall.server.scheduler import Scheduler
from farcall.spec.scaling import Scaling

TICK = 0.1  # seconds
START_SECONDS = 0.3


@dataclass(eq=False)
class PaperContainer:
    placement: Placement
    ready_at: float
    busy_until: float = 0.0  # 0: idle
    idle_since: float = 0.0
    is_ready: bool = False


@dataclass(eq=False)
class PaperPool:
    """A function that gets inputs of these durations at these times, the next one first."""

    simulation: "Simulation"
    app: str
    name: str
    request: Request
    scaling: Scaling
    arrivals: deque[tuple[float, float]]
    mean_seconds: float | None = None
    waiting: deque[float] = field(default_factory=deque[float])
    containers: list[PaperContainer] = field(default_factory=list[PaperContainer])
    started: int = 0
    ended: int = 0
    first_at: float | None = None  # when it got its first container
    served: int = 0
    sizes: list[int] = field(default_factory=list[int])  # how many containers it had, at each tick

    def __post_init__(self) -> None:
        scheduler = self.simulation.scheduler
        self.autoscaler = Autoscaler(self.scaling)
        self.demand = scheduler.demand(self.app, self.app, self.name, self.request, self)

    def tick(self, now: float) -> None:
        scheduler = self.simulation.scheduler
        while self.arrivals and self.arrivals[0][0] <= now:
            self.waiting.append(self.arrivals.popleft()[1])
        for container in list(self.containers):
            if not container.is_ready and now >= container.ready_at:
                container.is_ready, container.idle_since = True, now
                scheduler.ready(container.placement)
            if container.busy_until and now >= container.busy_until:
                container.busy_until, container.idle_since = 0.0, now
                self.served += 1
                scheduler.idle(container.placement)
            if container.placement.is_retiring and not container.busy_until:
                self.end(container)
            elif container.is_ready and not container.busy_until and self.waiting:
                container.busy_until = now + self.waiting.popleft()
                scheduler.busy(container.placement)
        live = [container for container in self.containers if not container.placement.is_retiring]
        held = sum(bool(container.busy_until) for container in self.containers)
        target = self.autoscaler.evaluate(Load(len(self.waiting), held, self.mean_seconds, 0.0), now)
        for container in sorted(live, key=lambda one: one.idle_since)[: max(0, len(live) - target.keep)]:
            idle = container.is_ready and not container.busy_until
            if idle and now - container.idle_since >= self.scaling.scaledown_window:
                self.end(container)
                live.remove(container)
        size = len(live)
        scheduler.want(self.demand, target.start - size, target.for_inputs - size, self.scaling.min_containers, now)
        self.sizes.append(size)

    def end(self, container: PaperContainer) -> None:
        self.ended += 1
        self.containers.remove(container)
        self.simulation.scheduler.release(container.placement)

    def start(self, placement: Placement, now: float) -> None:
        self.started += 1
        self.first_at = now if self.first_at is None else self.first_at
        self.simulation.scheduler.made(placement)
        self.containers.append(PaperContainer(placement, now + START_SECONDS))

    def evict(self, placement: Placement) -> None:
        self.end(next(one for one in self.containers if one.placement is placement))


class Simulation:
    """Machines and pools, and what becomes of them."""

    def __init__(self, *capacities: Capacity) -> None:
        self.scheduler = Scheduler()
        self.now = 0.0
        self.ticks = 0
        self.pools: list[PaperPool] = []
        for number, capacity in enumerate(capacities):
            self.scheduler.add_worker(f"w{number}", capacity)

    def pool(
        self,
        app: str,
        request: Request,
        arrivals: Callable[[], list[tuple[float, float]]] | list[tuple[float, float]],
        scaling: Scaling = Scaling(),  # noqa: B008 - it is frozen
        mean_seconds: float | None = None,
    ) -> PaperPool:
        made = arrivals() if callable(arrivals) else arrivals
        name = f"f{len(self.pools)}"
        pool = PaperPool(self, app, name, request, scaling, deque(sorted(made)), mean_seconds)
        self.pools.append(pool)
        return pool

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK)):
            self.ticks += 1
            self.now = self.ticks * TICK
            for pool in self.pools:
                pool.tick(self.now)
            decisions = self.scheduler.schedule(self.now)
            for placement in decisions.place:
                placement.demand.owner.start(placement, self.now)
            for placement in decisions.evict:
                placement.demand.owner.evict(placement)
