"""The containers of all pools: what the scheduler decides about them is done here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from farcall.server.resources import Capacity, Request
from farcall.server.scheduler import Scheduler

if TYPE_CHECKING:
    from farcall.server.autoscaler import Target
    from farcall.server.demand import Demand, Placement
    from farcall.server.scaler import Scaler

HERE = "local"  # the one worker of an embedded server


class Fleet:
    """Between the pools' scalers and the scheduler. Scalers say what they want and what becomes of their containers,
    and are told to start and to end some."""

    def __init__(self, capacity: Capacity, now: Callable[[], float]) -> None:
        self.scheduler = Scheduler()
        self.scheduler.add_worker(HERE, capacity)
        self._now = now

    def join(self, scaler: Scaler) -> Demand:
        """A new pool. Raises ResourceExhaustedError, which says what there is, where no worker could ever hold one of
        its containers."""
        pool = scaler.pool
        request = Request.of(pool.function)
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
