"""The containers of all pools: what the scheduler decides about them is done here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

from farcall.server.resources import Capacity, Request
from farcall.server.scheduler import Scheduler

if TYPE_CHECKING:
    from farcall.server.autoscaler import Target
    from farcall.server.demand import Demand, Placement
    from farcall.server.scaler import Scaler

HERE = "local"  # the server's own worker

_Said = TypeVar("_Said")


class Fleet:
    """Between the pools' scalers and the scheduler. Scalers say what they want and what becomes of their containers,
    and are told to start and to end some."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.scheduler = Scheduler()
        self.awaits_workers = False  # whether some may come by themselves
        self._now = now

    def add_worker(
        self, worker_id: str, capacity: Capacity, places: Iterable[str] = (), *, is_open: bool = True
    ) -> None:
        """A worker has come. `places` are words by which functions can ask for it."""
        self.scheduler.add_worker(worker_id, capacity, places=places)
        self.scheduler.set_open(worker_id, is_open=is_open)
        self.schedule()

    def remove_worker(self, worker_id: str) -> None:
        """A worker is lost, with what is there; nothing is placed there any more."""
        self.scheduler.remove_worker(worker_id)

    def expect(self, places: Iterable[str]) -> None:
        """The places of all workers that have joined, those that are away, too."""
        self.scheduler.expect(places)
        self.schedule()

    def set_open(self, worker_id: str, *, is_open: bool) -> None:
        """Whether a worker is to have further containers."""
        self.scheduler.set_open(worker_id, is_open=is_open)
        self.schedule()

    def capacity(self, worker_id: str) -> Capacity:
        """What a worker has."""
        return self.scheduler.room(worker_id).capacity

    def free_memory(self, worker_id: str) -> int:
        """MiB that a worker has left for containers."""
        return self.scheduler.room(worker_id).free_memory

    def bar(self, demand: Demand, worker_id: str) -> bool:
        """A worker will not have a pool's containers. Whether there is another that may."""
        return self.scheduler.bar(demand, worker_id)

    def unbar(self, demand: Demand, worker_id: str) -> None:
        """A worker that would not have a pool's containers may be asked again."""
        self.scheduler.unbar(demand, worker_id)

    def of_those_here(self, said: Mapping[str, _Said]) -> dict[str, _Said]:
        """What workers said, of those that are here."""
        return {worker_id: one for worker_id, one in said.items() if self.scheduler.has(worker_id)}

    def join(self, scaler: Scaler) -> Demand:
        """A new pool. Raises ResourceExhaustedError, which says what there is, where no worker could ever hold one of
        its containers."""
        pool = scaler.pool
        request = Request.of(pool.function)
        if self.scheduler.workers or not self.awaits_workers:
            self.scheduler.check(pool.function.name, request)
        return self.scheduler.demand(pool.app.app_id, pool.app.name, pool.function.name, request, scaler)

    def keep(self, app: str, name: str, request: Request, owner: Owner) -> Placement | None:
        """Takes room for what is there already and the first to be evicted; None where there is none."""
        demand = self.scheduler.demand("", app, name, request, owner)
        placement = self.scheduler.keep(demand, HERE, self._now())
        if placement is None:
            self.scheduler.forget(demand)
        return placement

    def want(self, demand: Demand, target: Target, live: int, floor: int) -> None:
        """A pool has `live` containers and is to have those of its target."""
        if self.scheduler.want(demand, target.start - live, target.for_inputs - live, floor, self._now()):
            self.schedule()

    def leave(self, demand: Demand) -> None:
        """A pool gets no more containers."""
        self.scheduler.forget(demand)

    def schedule(self) -> None:
        """Starts the containers for which there is room, and ends those whose room others are to have."""
        decisions = self.scheduler.schedule(self._now())
        for placement in decisions.place:
            _scaler(placement).start(placement)
        for placement in decisions.evict:
            _owner(placement).evict(placement)
        for placement in decisions.retire:
            _scaler(placement).retire(placement)


class Owner(Protocol):
    """Whose placements may be evicted."""

    def evict(self, placement: Placement) -> None: ...


def _scaler(placement: Placement) -> Scaler:
    return placement.demand.owner


def _owner(placement: Placement) -> Owner:
    return placement.demand.owner
