"""The containers of one pool: how many there are to be, and where each is in its life."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

from farcall import errors
from farcall.server.autoscaler import Autoscaler, Load, Target
from farcall.spec.scaling import Scaling
from farcall.wire.scaling import PoolStatistics
from farcall.worker.container import Container, End, State

if TYPE_CHECKING:
    from farcall.server.demand import Placement
    from farcall.server.pool import Pool

EXIT_GRACE = 30.0  # seconds for exit hooks
NO_ROOM_SECONDS = 10.0  # until a worker that had no room is asked again, while there are others


class Scaler:
    """Starts and ends a pool's containers, as many as its load asks for and the fleet has room for. Raises
    ResourceExhaustedError where it could never have one."""

    def __init__(self, pool: Pool, scaling: Scaling) -> None:
        self.pool = pool
        self._fleet = pool.server.fleet
        self._demand = self._fleet.join(self)
        self._autoscaler = Autoscaler(scaling)
        self._placements: dict[str, Placement] = {}  # by container
        self._paused_until = 0.0
        self._paused_why = ""
        self._refusals: dict[str, errors.FarcallError] = {}  # what workers said that would not have a container

    @property
    def bounds(self) -> Scaling:
        """The bounds that hold now."""
        return self._autoscaler.scaling

    @bounds.setter
    def bounds(self, bounds: Scaling) -> None:
        self._autoscaler.scaling = bounds
        self.tick(self.pool.server.now())

    def live(self) -> int:
        """Containers that serve or will."""
        return sum(
            container.state is not State.STOPPING and not self.is_retiring(container)
            for container in self.pool.containers
        )

    def load(self) -> Load:
        """What there is to do now."""
        now = self.pool.server.now()
        held, oldest = 0, 0.0
        for container in self.pool.containers:
            if container.holds and container.state is State.READY:
                held += container.holds
                oldest = max(oldest, container.running_seconds(now))
        function = self.pool.function
        # A container for one input only is no faster for others than the time it takes to start.
        mean_seconds = None if function.single_use_containers else self.pool.mean_seconds
        return Load(len(self.pool.waiting), held, mean_seconds, oldest, function.target_held)

    # --- how many

    def scale(self) -> None:
        """Starts the containers that the inputs need and the fleet has room for."""
        if self.pool.waiting or self.bounds.min_containers:
            self._evaluate()

    def tick(self, now: float) -> None:
        """What time brings: starting what could not start before, and scaling down."""
        spare = -self._evaluate()
        if spare <= 0:
            return
        ceiling = self.bounds.max_containers
        over = 0 if ceiling is None else self.live() - ceiling  # the ceiling has been lowered: these go as they can
        idle = [one for one in self.pool.containers if one.state is State.READY and not one.holds]
        for position, container in enumerate(itertools.islice(sorted(idle, key=_idle_since), spare)):
            if position < over or now - container.idle_since >= self.bounds.scaledown_window:
                container.stop(EXIT_GRACE, "scaled down", now)

    def _evaluate(self) -> int:
        """Asks for what the load needs; returns how many more it may keep than it has."""
        now = self.pool.server.now()
        target = self._autoscaler.evaluate(self.load(), now)
        if self.pool.waiting and self.pool.blocked:
            target = target.beside(len(self.pool.blocked), self.bounds)
        live = self.live()
        if now < self._paused_until:
            target = Target(0, live, target.keep)
        if not self.pool.app.stopping:
            self._fleet.want(self._demand, target, live, self.bounds.min_containers)
        return target.keep - live

    def pause(self, seconds: float, why: str) -> None:
        """No more containers for so long."""
        self._paused_until = self.pool.server.now() + seconds
        self._paused_why = why
        self._evaluate()

    def close(self) -> None:
        """The pool's app stops: it gets no more containers."""
        self._fleet.leave(self._demand)

    # --- what the fleet decides

    def start(self, placement: Placement) -> None:
        """There is room for one more."""
        pool = self.pool
        container_id = f"ta-{os.urandom(10).hex()}"
        self._placements[container_id] = placement
        pool.containers.append(pool.server.workers.start(placement, container_id, pool))
        pool.app.containers_started += 1
        pool.server.testing.started(pool.function.function_id)

    def evict(self, placement: Placement) -> None:
        """The room of an idle one is for others."""
        self._container(placement).stop(EXIT_GRACE, "evicted", self.pool.server.now())

    def retire(self, placement: Placement) -> None:
        """The room of a busy one is for others, when it has done what it runs."""
        self.pool.take_back(self._container(placement))

    def _container(self, placement: Placement) -> Container:
        return next(one for one in self.pool.containers if self._placements[one.container_id] is placement)

    # --- what becomes of containers

    def is_retiring(self, container: Container) -> bool:
        """Whether it is to get no more inputs, because its room is for others."""
        return self._placements[container.container_id].is_retiring

    def made(self, container: Container) -> None:
        """It runs, and imports."""
        self._fleet.scheduler.made(self._placements[container.container_id])
        self._fleet.schedule()

    def ready(self, container: Container) -> None:
        """It can run inputs."""
        placement = self._placements[container.container_id]
        self._refusals.pop(placement.worker_id, None)
        self._fleet.scheduler.ready(placement)

    def busy(self, container: Container) -> None:
        """It has got an input."""
        self._fleet.scheduler.busy(self._placements[container.container_id])

    def idle(self, container: Container) -> None:
        """It has nothing to do."""
        placement = self._placements[container.container_id]
        self._fleet.scheduler.idle(placement)
        if placement.is_retiring:
            container.stop(EXIT_GRACE, "its room is for others", self.pool.server.now())

    def stopping(self, container: Container) -> None:
        """It is being ended."""
        self._fleet.scheduler.leaving(self._placements[container.container_id])

    def refused(self, container: Container, end: End) -> bool:
        """Whether a container is to be had from another worker, as its own would not have it, or any other of this
        pool: none for a while, where it had no room."""
        error = end.error
        if error is None or not (end.refused or _passes(error)):
            return False
        worker_id = self._placements[container.container_id].worker_id
        is_elsewhere = self._fleet.bar(self._demand, worker_id)
        if is_elsewhere and worker_id not in self._refusals:
            self.pool.server.logs.add_system(container, f"{error}. Other workers are asked\n")
        self._refusals[worker_id] = error
        if is_elsewhere and _passes(error):
            self.pool.server.loop.call_later(NO_ROOM_SECONDS, self._ask_again, worker_id)
        return is_elsewhere

    def all_refusals(self, last: errors.FarcallError) -> errors.FarcallError:
        """No worker will have a container, `last` is what the last one said: what all of them did. Those that had no
        room are asked again next time."""
        refusals = self._fleet.of_those_here(self._refusals)
        for worker_id, error in refusals.items():
            if _passes(error):
                self._fleet.unbar(self._demand, worker_id)
        if last not in refusals.values() or len(refusals) < 2:
            return last
        kind = errors.ResourceExhaustedError if any(map(_passes, refusals.values())) else errors.ContainerStartError
        said = "; ".join(dict.fromkeys(map(str, refusals.values())))
        return kind(f"no worker will have a container of {self.pool.function.name}: {said}")

    def _ask_again(self, worker_id: str) -> None:
        """A worker that had no room may have some by now."""
        if not self.pool.app.stopping:
            self._fleet.unbar(self._demand, worker_id)
            self._fleet.schedule()

    def gone(self, container: Container) -> None:
        """Nothing of it is left."""
        self._fleet.scheduler.release(self._placements.pop(container.container_id))

    # --- for people

    def statistics(self) -> PoolStatistics:
        """What the pool has to do and has to do it with, now."""
        ready = [container for container in self.pool.containers if container.state is State.READY]
        return PoolStatistics(
            backlog=self.pool.backlog + self.pool.server.spawned.stored(self.pool),
            num_total_runners=self.live(),
            num_running_inputs=sum(container.holds for container in ready),
            input_headroom=sum(max(0, self.pool.function.target_held - container.holds) for container in ready),
        )

    def waiting_reason(self, now: float) -> str:
        """Why the inputs that wait do so."""
        containers = self.pool.containers
        starting = [container for container in containers if container.state in (State.STARTING, State.LOADING)]
        ready = sum(container.state is State.READY for container in containers)
        if ready == 0 and starting:
            first = min(starting, key=_created_at)
            source = self.pool.function.source.module
            doing = f"importing {source}" if first.state is State.LOADING else "starting a container"
            return f"{doing} ({now - first.created_at:.0f} s)"
        if ready == 0 and now < self._paused_until:
            return self._paused_why
        more = self._fleet.scheduler.why(self._demand) if self._demand.missing else ""
        if ready == 0:
            return more or "waiting for a container to end"
        batching = self.pool.function.batching
        if batching is not None and any(container.occupied == 0 for container in containers):
            waiting, size = len(self.pool.waiting), batching.max_batch_size
            return f"its batch has {waiting} of {size} items, and waits {batching.wait_ms / 1000:g} s for more"
        held = sum(container.holds for container in containers)
        queued = f"queued behind {_count(held, 'input')} on {_count(ready, 'container')}"
        ceiling = self.bounds.max_containers
        if ceiling is not None and self.live() >= ceiling:
            return f"{queued} (max_containers={ceiling})"
        return f"{queued}; for another one it is {more}" if more.startswith("waiting") else queued


def _passes(error: errors.FarcallError) -> bool:
    """Whether a worker that said this may have a container later: room comes and goes."""
    return isinstance(error, errors.ResourceExhaustedError)


def _idle_since(container: Container) -> float:
    return container.idle_since


def _created_at(container: Container) -> float:
    return container.created_at


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
