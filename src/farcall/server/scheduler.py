"""Which container starts where: requests and workers to placements. Pure: it is told what happens and when, and says
what to do; it has no clock and does no I/O.

Pools say how many containers they want (`want`). `schedule` places those for which there is room, in turn between
apps, the one with the smallest share of the machines first. For inputs that wait, room is made: containers that are
idle, and above their pool's floor, are evicted, the one that is idle longest first, and before them the templates that
containers are forked from (`keep`). Where none are idle, and a pool has
waited for `PATIENCE_SECONDS`, containers of whoever has more are retired: they finish what they run and take nothing
further. A pool that has had none at all for `STARVED_SECONDS` gets room from anybody who has had a container for as
long: what does not fit beside each other then takes turns. Room that is being made is claimed, so that nobody else gets
it.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from farcall.errors import ResourceExhaustedError
from farcall.server.demand import AppUsage, Demand, Placement
from farcall.server.reasons import impossible, why
from farcall.server.resources import NO_GPU, Amounts, Capacity, GpuChoice, Request
from farcall.server.room import Claim, Index, WorkerRoom

PATIENCE_SECONDS = 5.0
STARVED_SECONDS = 30.0
RETIRES = 16  # demands for which containers to be retired are looked for in one pass: each takes a while
CLAIM_SECONDS = 60.0  # that claimed room may take to come free; then others have a try


Shape = tuple[Request, bool, int]  # all that decides where there is room: also whether it is a first one, who will not


class Decisions(NamedTuple):
    """What is to be done now."""

    place: list[Placement]
    """Containers to be started. Each is held until `release`."""
    evict: list[Placement]
    """Idle containers to be ended at once."""
    retire: list[Placement]
    """Busy containers to be given no further inputs, and ended when they have none, unless `is_retiring` is no longer
    true by then."""


class Scheduler:
    """Knows workers, what runs on them and what is wanted. Times are seconds of one steady clock."""

    def __init__(self) -> None:
        self._index = Index()
        self._workers: dict[str, WorkerRoom] = {}
        self._totals = Amounts()
        self._apps: dict[str, AppUsage] = {}
        self._unmet: dict[Demand, None] = {}
        self._idle: OrderedDict[Placement, None] = OrderedDict()  # longest first
        self._claims: dict[Claim, None] = {}
        self._changed = False  # since the last schedule, so that it may have more to do

    # --- workers

    def add_worker(
        self, worker_id: str, capacity: Capacity, images: Iterable[str] = (), places: Iterable[str] = ()
    ) -> None:
        """A worker has come. `places` are words by which functions can ask for it, or its like."""
        self._workers[worker_id] = self._index.add(worker_id, capacity, images, places)
        self._add_totals(capacity, 1)
        self._changed = True

    def remove_worker(self, worker_id: str) -> list[Placement]:
        """A worker is lost; returns the containers that were there, which are released."""
        worker = self._workers.pop(worker_id)
        for claim in [claim for claim in self._claims if claim.worker is worker]:
            self._drop(claim)
        lost = list(worker.placements)
        for placement in lost:
            self.release(placement)
        self._index.remove(worker)
        self._add_totals(worker.capacity, -1)
        for app in self._apps.values():  # another one may get its bit
            for demand in app.all:
                demand.barred &= ~worker.bit
        self._changed = True
        return lost

    def expect(self, places: Iterable[str]) -> None:
        """The places of all workers that may come, or are here: functions that ask for one of them wait for it."""
        self._index.expected = frozenset(places)
        self._changed = True

    def set_open(self, worker_id: str, *, is_open: bool) -> None:
        """Whether a worker is to have further containers."""
        worker = self._workers[worker_id]
        self._index.set_open(worker, is_open)
        for claim in [claim for claim in self._claims if claim.worker is worker]:
            self._drop(claim)
        self._changed = True

    def bar(self, demand: Demand, worker_id: str) -> bool:
        """A worker will not have the pool's containers. Whether there is another that may."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            demand.barred |= worker.bit
            if demand.claim is not None and demand.claim.worker is worker:
                self._drop(demand.claim)
            self._changed = True
        request = demand.request
        return any(
            self._index.suits(other, request, demand.barred) and not other.capacity.lacks(request)
            for other in self._workers.values()
        )

    def unbar(self, demand: Demand, worker_id: str) -> None:
        """A worker may be asked for the pool's containers again."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            demand.barred &= ~worker.bit
            self._changed = True

    def room(self, worker_id: str) -> WorkerRoom:
        """What a worker has and has left."""
        return self._workers[worker_id]

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._workers)

    def has(self, worker_id: str) -> bool:
        """Whether that worker is here."""
        return worker_id in self._workers

    def set_images(self, worker_id: str, images: Iterable[str]) -> None:
        """The images that a worker has now."""
        self._index.set_images(self._workers[worker_id], images)

    def _add_totals(self, capacity: Capacity, sign: int) -> None:
        totals = self._totals
        totals.cpu += sign * capacity.cpu_shares
        totals.memory += sign * capacity.memory
        totals.disk += sign * capacity.disk
        for gpus in capacity.gpus:
            totals.gpus[gpus.type] = totals.gpus.get(gpus.type, 0) + sign * len(gpus.indices)

    # --- what pools want

    def check(self, name: str, request: Request) -> None:
        """Raises ResourceExhaustedError, which says what there is, where no worker could ever hold a container of
        `name`."""
        here = self._index.at(request.places)
        capacities = [one.capacity for one in self._workers.values() if one.bit & here]
        if not capacities and not self._index.expected.isdisjoint(request.places):
            return
        message = impossible(name, request, capacities)
        if message:
            raise ResourceExhaustedError(message)

    def demand(self, app_id: str, app_name: str, name: str, request: Request, owner: Any = None) -> Demand:
        """An account for a pool, which wants nothing yet."""
        app = self._apps.get(app_id)
        if app is None:
            app = self._apps[app_id] = AppUsage(app_id, app_name)
        demand = Demand(app, name, request, owner, PATIENCE_SECONDS)
        app.all[demand] = None
        return demand

    def want(self, demand: Demand, missing: int, for_inputs: int, floor: int, now: float) -> bool:
        """A pool wants so many containers more than it has, `for_inputs` of them for inputs that wait. Returns whether
        that is new, and `schedule` may have something to decide."""
        demand.floor = floor
        missing = max(0, missing)
        for_inputs = max(0, min(missing, for_inputs))
        if missing == demand.missing and for_inputs == demand.for_inputs:
            return False
        if missing and demand not in self._unmet:
            demand.since = now
            demand.patience = PATIENCE_SECONDS
            self._unmet[demand] = None
            demand.app.unmet[demand] = None
        elif not missing and demand in self._unmet:
            del self._unmet[demand], demand.app.unmet[demand]
        demand.missing = missing
        demand.for_inputs = for_inputs
        if demand.claim is not None:
            self._shorten(demand.claim, demand.for_inputs)
        self._changed = True
        return True

    def forget(self, demand: Demand) -> None:
        """The pool is gone; its containers have been released."""
        self.want(demand, 0, 0, 0, 0.0)
        demand.app.all.pop(demand, None)
        if not demand.app.all:
            del self._apps[demand.app.app_id]

    def why(self, demand: Demand) -> str:
        """Why the pool has not got what it wants, for people."""
        return why(self._index, list(self._workers.values()), demand)

    def keep(self, demand: Demand, worker_id: str, now: float) -> Placement | None:
        """Takes room for what is on a worker already and never busy: it is the first to be evicted. None where there is
        no room for it."""
        worker = self._workers[worker_id]
        if demand.request.memory > worker.offered()[1]:
            return None
        placement = Placement(demand, worker, NO_GPU, worker.take(demand.request, NO_GPU), now)
        placement.is_made = placement.is_ready = True
        worker.placements[placement] = None
        self._stays(placement, 1)
        self._idle[placement] = None
        self._idle.move_to_end(placement, last=False)
        self._index.refresh(worker)
        return placement

    # --- what becomes of containers

    def made(self, placement: Placement) -> None:
        """The container runs, and goes on to import."""
        if not placement.is_made:
            placement.is_made = True
            placement.worker.making -= 1
            self._index.set_starts(placement.worker)
            self._changed = True

    def ready(self, placement: Placement) -> None:
        """The container has imported, and is idle until it is told otherwise."""
        self.made(placement)
        if not placement.is_ready:
            placement.is_ready = True
            placement.worker.loading -= 1
            self._index.set_starts(placement.worker)
            self.idle(placement)
            self._changed = True

    def busy(self, placement: Placement) -> None:
        """The container runs something."""
        self._idle.pop(placement, None)

    def idle(self, placement: Placement) -> None:
        """The container has nothing to do, from now on."""
        if placement.is_ready and not placement.is_leaving and not placement.is_retiring:
            self._idle[placement] = None
            self._idle.move_to_end(placement)

    def leaving(self, placement: Placement) -> None:
        """The container is being ended. What it holds comes free with `release`."""
        if placement.is_leaving:
            return
        self._idle.pop(placement, None)
        if not placement.is_retiring:
            placement.worker.leaving.add(placement.request, placement.gpu)
            self._stays(placement, -1)
        placement.is_leaving = True
        placement.is_retiring = False
        if placement.worker.claimed.memory:
            self._index.refresh(placement.worker)
        self._changed = True

    def release(self, placement: Placement) -> None:
        """Nothing of the container is left."""
        worker = placement.worker
        if placement not in worker.placements:
            return
        self.leaving(placement)
        del worker.placements[placement]
        worker.leaving.add(placement.request, placement.gpu, -1)
        worker.making -= not placement.is_made
        worker.loading -= not placement.is_ready
        worker.give_back(placement)
        self._index.set_starts(worker)
        self._index.refresh(worker)
        self._changed = True

    # --- deciding

    def schedule(self, now: float) -> Decisions:
        """Places what can be placed, and makes room for what cannot."""
        decisions = Decisions([], [], [])
        for claim in [claim for claim in self._claims if claim.until <= now]:
            self._lapse(claim, now)
        if self._unmet and self._changed:
            self._changed = False
            self._place(decisions, now)
        if self._unmet:
            self._make_room(decisions, now)
        return decisions

    def _place(self, decisions: Decisions, now: float) -> None:
        """Gives each app a container in turn, the one with the smallest share first; in an app each pool in turn.

        Before them come those that have waited longer than their patience, so that nobody is always last.
        """
        nowhere: set[Shape] = set()  # what has been found to have no room in this pass
        for demand in sorted(self._unmet, key=_since):
            if now - demand.since < demand.patience:
                break
            self._place_one(demand, nowhere, decisions, now)
        turns: list[tuple[float, int, AppUsage, deque[Demand]]] = []
        for order, app in enumerate({demand.app: None for demand in self._unmet}):
            turns.append((app.held.share_of(self._totals), order, app, deque(app.unmet)))
        heapq.heapify(turns)
        while turns:
            _, order, app, demands = turns[0]
            demand = demands.popleft()
            if demand.missing and self._place_one(demand, nowhere, decisions, now) and demand.missing:
                demands.append(demand)
            if demands:
                heapq.heapreplace(turns, (app.held.share_of(self._totals), order, app, demands))
            else:
                heapq.heappop(turns)

    def _place_one(self, demand: Demand, nowhere: set[Shape], decisions: Decisions, now: float) -> bool:
        is_first = demand.live == 0
        claim = demand.claim
        if claim is not None:
            worker = claim.worker
            if worker.fits(demand.request, claim.gpu, is_first=is_first) and worker.making < worker.capacity.making:
                self._start(demand, worker, claim.gpu, decisions, now)
                return True
        shape = demand.request, is_first, demand.barred
        if shape in nowhere:
            return False
        found = self._index.find(demand.request, is_first=is_first, barred=demand.barred)
        if found is None:
            nowhere.add(shape)
            return False
        self._start(demand, *found, decisions, now)
        return True

    def _start(self, demand: Demand, worker: WorkerRoom, gpu: GpuChoice, decisions: Decisions, now: float) -> None:
        request = demand.request
        placement = Placement(demand, worker, gpu, worker.take(request, gpu), now)
        worker.placements[placement] = None
        worker.making += 1
        worker.loading += 1
        self._stays(placement, 1)
        demand.since = now
        demand.patience = PATIENCE_SECONDS
        demand.missing -= 1
        demand.for_inputs = min(demand.for_inputs, demand.missing)
        # The next of the app's pools is first in its next turn.
        del self._unmet[demand], demand.app.unmet[demand]
        if demand.missing:
            self._unmet[demand] = demand.app.unmet[demand] = None
        if demand.claim is not None:
            self._shorten(demand.claim, demand.claim.count - 1)
        self._index.set_starts(worker)
        self._index.refresh(worker)
        decisions.place.append(placement)

    # --- making room

    def _make_room(self, decisions: Decisions, now: float) -> None:
        hopeless: set[tuple[Request, int]] = set()  # what containers of other pools do not hold, as this pass has found
        has_room: dict[Shape, bool] = {}
        tries = RETIRES
        held_back = False  # whether nobody is retired for those behind somebody who starves
        for demand in sorted(self._unmet, key=_since):
            request = demand.request
            if not demand.for_inputs or demand.claim is not None:
                continue
            shape = request, demand.live == 0, demand.barred
            if shape not in has_room:
                found = self._index.find(request, is_first=demand.live == 0, now=False, barred=demand.barred)
                has_room[shape] = found is not None
            if has_room[shape]:
                continue  # and it is only that others start just now
            if (request, demand.barred) not in hopeless:
                if self._evict(demand, decisions, now):
                    continue
                if not any(placement.demand is demand for placement in self._idle):
                    hopeless.add((request, demand.barred))
            if held_back or now - demand.since < demand.patience or now - demand.tried_at < PATIENCE_SECONDS:
                continue
            if not tries:
                break  # the next pass goes on behind those tried in this one
            tries -= 1
            if self._retire(demand, decisions, now):
                demand.tried_at = now
            elif self._starves(demand, now) and self._retire(demand, None, now):
                held_back = True  # else containers might come and go, none of which is there for long enough
            else:
                demand.tried_at = now

    def _evict(self, demand: Demand, decisions: Decisions, now: float) -> bool:
        """Claims a worker where containers that leave anyhow, or idle ones, hold what is wanted."""
        suited = self._suited(demand)
        for worker in suited:
            if worker.leaving.memory and self._claim(demand, worker, [], demand.for_inputs, decisions, now):
                return True
        found: dict[WorkerRoom, tuple[Amounts, list[GpuChoice]]] = {}
        for placement in self._evictable(demand, self._idle):
            worker = placement.worker
            if worker not in suited:
                continue
            if worker not in found:
                found[worker] = worker.coming(), list(worker.choices(demand.request))
            more, choices = found[worker]
            more.add(placement.request, placement.gpu)
            if any(worker.fits(demand.request, gpu, more, is_first=demand.live == 0) for gpu in choices):
                idle = list(self._evictable(demand, self._idle_on(worker)))
                return self._claim(demand, worker, idle, demand.for_inputs, decisions, now)
        return False

    def _suited(self, demand: Demand) -> dict[WorkerRoom, None]:
        """The workers that may have a container of a demand."""
        suits, request, barred = self._index.suits, demand.request, demand.barred
        return {worker: None for worker in self._workers.values() if suits(worker, request, barred)}

    def _idle_on(self, worker: WorkerRoom) -> Iterator[Placement]:
        return (placement for placement in self._idle if placement.worker is worker)

    def _evictable(self, demand: Demand, idle: Iterable[Placement]) -> Iterator[Placement]:
        """Those idle containers that may be ended for a demand: those of one worker, or those of another."""
        ended: dict[tuple[WorkerRoom, Demand], int] = {}
        for placement in idle:
            other = placement.demand
            gone = ended.get((placement.worker, other), 0) + 1
            if other is not demand and other.live - gone >= other.floor:
                ended[placement.worker, other] = gone
                yield placement

    def _starves(self, demand: Demand, now: float) -> bool:
        return demand.live == 0 and now - demand.since >= max(STARVED_SECONDS, demand.patience)

    def _retire(self, demand: Demand, decisions: Decisions | None, now: float) -> bool:
        """Claims a worker where idle containers, and busy ones of those who have more, hold what is wanted. Without
        `decisions` it only says whether one could be claimed once all containers have been there for long."""
        for worker in self._suited(demand):
            if worker.capacity.lacks(demand.request):
                continue
            busy = self._of_those_who_have_more(demand, worker)
            if self._starves(demand, now):
                busy += self._of_anybody(demand, worker, busy, now - STARVED_SECONDS if decisions else now)
            victims = [*self._evictable(demand, self._idle_on(worker)), *busy]
            if not busy:
                continue
            if decisions is None:
                if self._would_do(demand, worker, victims):
                    return True
            elif self._claim(demand, worker, victims, 1, decisions, now):
                return True
        return False

    def _would_do(self, demand: Demand, worker: WorkerRoom, victims: list[Placement]) -> bool:
        more = worker.coming()
        for victim in victims:
            more.add(victim.request, victim.gpu)
        is_first = demand.live == 0
        return any(worker.fits(demand.request, gpu, more, is_first=is_first) for gpu in worker.choices(demand.request))

    def _of_those_who_have_more(self, demand: Demand, worker: WorkerRoom) -> list[Placement]:
        """The busy containers of a worker that may be retired for a demand, in the order in which they are to go.

        Such that those whom they belong to, apps, or pools of the demand's own app, have no less afterwards than the
        demand has then. The last container of a pool, and its floor, are not among them.
        """
        totals = self._totals
        gpu = next(worker.choices(demand.request))
        of_app, of_pool = _with(demand.app.held, demand, gpu), _with(demand.held, demand, gpu)
        going: dict[AppUsage | Demand, Amounts] = {}
        staying: dict[Demand, int] = {}
        found: list[Placement] = []
        for placement in sorted(worker.placements, key=lambda each: -each.demand.held.share_of(totals)):
            other = placement.demand
            if other is demand or not self._is_busy(placement):
                continue
            who, then = (other, of_pool) if other.app is demand.app else (other.app, of_app)
            held = _with(going.get(who, who.held), other, placement.gpu, -1)
            stay = staying.get(other, other.live) - 1
            if stay >= max(1, other.floor) and held.share_of(totals) >= then.share_of(totals) - _NEARLY:
                going[who], staying[other] = held, stay
                found.append(placement)
        return found

    def _of_anybody(self, demand: Demand, worker: WorkerRoom, before: list[Placement], until: float) -> list[Placement]:
        """Those busy containers that come after `before` for a demand that has none: of all that have been there since
        `until`, whoever they belong to."""
        staying: dict[Demand, int] = {}
        for placement in before:
            staying[placement.demand] = staying.get(placement.demand, placement.demand.live) - 1
        found: list[Placement] = []
        for placement in worker.placements:
            other = placement.demand
            if other is demand or not self._is_busy(placement) or placement in before:
                continue
            stay = staying.get(other, other.live) - 1
            if stay >= other.floor and placement.since <= until:
                staying[other] = stay
                found.append(placement)
        return found

    def _is_busy(self, placement: Placement) -> bool:
        stays = placement.is_ready and not placement.is_leaving and not placement.is_retiring
        return stays and placement not in self._idle

    def _claim(
        self,
        demand: Demand,
        worker: WorkerRoom,
        victims: list[Placement],
        most: int,
        decisions: Decisions,
        now: float,
    ) -> bool:
        """Claims room for as many of `most` containers as there would be without the victims. Of these those are ended
        that are needed for it, the first ones first. False where there is not room for one."""
        request = demand.request
        for gpu in worker.choices(request):
            more = worker.coming()
            count = used = 0
            for position in range(len(victims) + 1):
                while count < most and worker.fits(request, gpu, more, count + 1, is_first=demand.live == 0):
                    count, used = count + 1, position
                if count == most or position == len(victims):
                    break
                more.add(victims[position].request, victims[position].gpu)
            if not count:
                continue
            needed = victims[:used]
            more = worker.coming()
            for victim in needed:
                more.add(victim.request, victim.gpu)
            for victim in reversed(victims[:used]):
                more.add(victim.request, victim.gpu, -1)
                if worker.fits(request, gpu, more, count, is_first=demand.live == 0):
                    needed.remove(victim)
                else:
                    more.add(victim.request, victim.gpu)
            claim = Claim(demand, worker, gpu, count, now + max(CLAIM_SECONDS, demand.patience))
            demand.claim = claim
            self._claims[claim] = None
            worker.claimed.add(request, gpu, count)
            for victim in needed:
                self._end(victim, claim, decisions)
            self._index.refresh(worker)
            return True
        return False

    def _end(self, victim: Placement, claim: Claim, decisions: Decisions) -> None:
        if victim in self._idle:
            decisions.evict.append(victim)
            self.leaving(victim)
            return
        decisions.retire.append(victim)
        claim.retiring.append(victim)
        victim.is_retiring = True
        victim.worker.leaving.add(victim.request, victim.gpu)
        self._stays(victim, -1)

    def _stays(self, placement: Placement, sign: int) -> None:
        """The container is one of those that its pool has, or no longer."""
        demand = placement.demand
        demand.live += sign
        demand.held.add(placement.request, placement.gpu, sign)
        demand.app.held.add(placement.request, placement.gpu, sign)

    def _shorten(self, claim: Claim, count: int) -> None:
        """The claim is for so many containers at most."""
        if count <= 0:
            self._drop(claim)
        elif count < claim.count:
            claim.worker.claimed.add(claim.demand.request, claim.gpu, count - claim.count)
            claim.count = count
            self._index.refresh(claim.worker)

    def _lapse(self, claim: Claim, now: float) -> None:
        """What was to come free did not: perhaps because it waits for what is claimed. Next time the demand waits twice
        as long, and its claim is then good for as long."""
        claim.demand.patience = 2 * max(claim.demand.patience, CLAIM_SECONDS)
        claim.demand.since = now
        self._drop(claim)

    def _drop(self, claim: Claim) -> None:
        del self._claims[claim]
        claim.demand.claim = None
        claim.worker.claimed.add(claim.demand.request, claim.gpu, -claim.count)
        for victim in claim.retiring:
            if victim.is_retiring:
                victim.is_retiring = False
                victim.worker.leaving.add(victim.request, victim.gpu, -1)
                self._stays(victim, 1)
        self._index.refresh(claim.worker)
        self._changed = True


_NEARLY = 1e-9


def _since(demand: Demand) -> float:
    return demand.since


def _with(held: Amounts, demand: Demand, gpu: GpuChoice, times: int = 1) -> Amounts:
    """What is held, and so many containers of a demand's."""
    amounts = Amounts(held.cpu, held.memory, held.disk, dict(held.gpus))
    amounts.add(demand.request, gpu, times)
    return amounts
