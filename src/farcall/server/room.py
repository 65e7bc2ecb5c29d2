"""The room that workers have left, and the index that finds the best of them.

A worker is one bit in whole numbers that stand for sets of workers. For each resource there is such a set for each
level of what is free, and a search is a few bitwise operations, whatever the number of workers: with 1,000 of them some
ten microseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from farcall.server.resources import MILLICORES, NO_GPU, Amounts, Capacity, GpuChoice, Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from farcall.server.demand import Demand, Placement
    from farcall.spec.gpu import GpuRequest

LOOKED_AT = 8  # workers of one level that a request fits, among which the best is chosen
LEVELS = 160  # of an amount: enough for 2**39


class Claim:
    """Room that is being made on a worker for `count` containers of one demand, each with the GPUs `gpu`. Nobody else
    gets it. `retiring` are the busy containers that hold it now."""

    __slots__ = ("count", "demand", "gpu", "retiring", "until", "worker")

    def __init__(self, demand: Demand, worker: WorkerRoom, gpu: GpuChoice, count: int, until: float) -> None:
        self.demand = demand
        self.worker = worker
        self.gpu = gpu
        self.count = count
        self.until = until
        self.retiring: list[Placement] = []


class WorkerRoom:
    """One worker: what it has, what is free, and what is on its way out."""

    __slots__ = (
        "bit",
        "capacity",
        "claimed",
        "free_cpu",
        "free_disk",
        "free_gpus",
        "free_memory",
        "images",
        "leaving",
        "levels",
        "loading",
        "making",
        "offered_gpus",
        "placements",
        "places",
        "position",
        "shares",
        "worker_id",
    )

    def __init__(
        self, worker_id: str, capacity: Capacity, images: Iterable[str], position: int, places: Iterable[str] = ()
    ) -> None:
        self.worker_id = worker_id
        self.places = frozenset(places)  # the words for where it is, and for what it is
        self.capacity = capacity
        self.images = set(images)
        self.position = position
        self.bit = 1 << position
        self.shares = max(1, capacity.cpu_shares)
        self.free_cpu = capacity.cpu_shares
        self.free_memory = capacity.memory
        self.free_disk = capacity.disk
        self.free_gpus: dict[str, list[int]] = {gpus.type: sorted(gpus.indices) for gpus in capacity.gpus}
        self.placements: dict[Placement, None] = {}
        self.leaving = Amounts()  # what containers hold that will go without anybody's doing
        self.making = self.loading = 0  # containers: being made; the same or importing
        self.claimed = Amounts()
        self.levels = [0, 0, 0]  # where the index has it
        self.offered_gpus: dict[str, int] = {}  # the same, for GPUs

    def take(self, request: Request, gpu: GpuChoice) -> tuple[int, ...]:
        """Takes what a container holds; returns the numbers of its GPUs."""
        self.free_cpu -= request.cpu
        self.free_memory -= request.memory
        self.free_disk -= request.disk
        if not gpu.count:
            return ()
        free = self.free_gpus[gpu.type]
        taken = tuple(free[: gpu.count])
        del free[: gpu.count]
        return taken

    def give_back(self, placement: Placement) -> None:
        """A container is gone."""
        request = placement.request
        self.free_cpu += request.cpu
        self.free_memory += request.memory
        self.free_disk += request.disk
        if placement.gpus:
            free = self.free_gpus[placement.gpu.type]
            free.extend(placement.gpus)
            free.sort()

    def fits(
        self, request: Request, gpu: GpuChoice, more: Amounts | None = None, count: int = 1, *, is_first: bool = False
    ) -> bool:
        """Whether so many containers fit into what is free, with `more` that will be and is not claimed. `is_first` is
        said of a function's first container, for which shares of cpu are no bound."""
        cpu, memory, disk = self.free_cpu, self.free_memory, self.free_disk
        gpus = len(self.free_gpus[gpu.type]) if gpu.type else 0
        if more is not None:
            cpu, memory, disk = cpu + more.cpu, memory + more.memory, disk + more.disk
            gpus += more.gpus.get(gpu.type, 0)
        return (
            request.cpu <= self.capacity.cpu
            and (request.cpu * count <= cpu or (is_first and count == 1 and self.capacity.cpu_overcommit > 1))
            and request.memory * count <= memory
            and (not request.disk or request.disk * count <= disk)
            and gpu.count * count <= gpus
        )

    def coming(self) -> Amounts:
        """What will come free, less what is claimed; it may be less than nothing."""
        leaving, claimed = self.leaving, self.claimed
        gpus = {gpu: leaving.gpus.get(gpu, 0) - claimed.gpus.get(gpu, 0) for gpu in self.free_gpus}
        return Amounts(leaving.cpu - claimed.cpu, leaving.memory - claimed.memory, leaving.disk - claimed.disk, gpus)

    def choices(self, request: Request) -> Iterator[GpuChoice]:
        """The GPUs of this worker, whether free or not, that would do for a container, the most wanted first."""
        if not request.gpus:
            yield NO_GPU
        for wanted in request.gpus:
            for gpus in self.capacity.gpus_for(wanted):
                yield GpuChoice(gpus.type, wanted.count)

    def offered(self) -> tuple[int, int, int]:
        """Free millicores, memory and disk, without what is claimed and not coming from containers that leave."""
        claimed, leaving = self.claimed, self.leaving
        if not claimed.memory:
            return self.free_cpu, self.free_memory, self.free_disk
        return (
            self.free_cpu - max(0, claimed.cpu - leaving.cpu),
            self.free_memory - max(0, claimed.memory - leaving.memory),
            self.free_disk - max(0, claimed.disk - leaving.disk),
        )

    def offered_of(self, gpu: str) -> int:
        """The same for GPUs of one type."""
        claimed = self.claimed.gpus.get(gpu, 0) - self.leaving.gpus.get(gpu, 0)
        return max(0, len(self.free_gpus[gpu]) - max(0, claimed))


class Index:
    """Finds workers by what they offer."""

    def __init__(self) -> None:
        self._workers: list[WorkerRoom | None] = []
        # The workers that offer a level or more: of cpu, memory, disk.
        self._at_least = [[0] * (LEVELS + 1) for _ in range(3)]
        self._gpus: dict[str, list[int]] = {}  # the workers that offer so many GPUs of a type or more
        self._gpu_memory: dict[str, int] = {}
        self._with_gpus = 0
        self._with_shares = 0
        self._by_image: dict[str, int] = {}
        self._making = 0  # those that make as many containers as they may
        self._loading = 0  # the same for importing
        self._types: dict[GpuRequest, list[str]] = {}
        self._places: dict[str, int] = {}  # the workers at each
        self.expected: frozenset[str] = frozenset()  # places of workers that have joined, those that are away, too
        self._crowded = 0  # those that have a container for each core
        self._closed = 0  # those that are to have no further containers

    def add(self, worker_id: str, capacity: Capacity, images: Iterable[str], places: Iterable[str] = ()) -> WorkerRoom:
        """A worker has come."""
        position = self._workers.index(None) if None in self._workers else len(self._workers)
        worker = WorkerRoom(worker_id, capacity, images, position, places)
        self._workers[position : position + 1] = [worker]
        for place in worker.places:
            self._places[place] = self._places.get(place, 0) | worker.bit
        for masks in self._at_least:
            masks[0] |= worker.bit
        for gpus in capacity.gpus:
            self._with_gpus |= worker.bit
            if gpus.type not in self._gpus:
                self._gpus[gpus.type] = [0]
                self._gpu_memory[gpus.type] = gpus.memory
                self._types.clear()
            self._gpus[gpus.type][0] |= worker.bit
            worker.offered_gpus[gpus.type] = 0
        if capacity.cpu_overcommit > 1:
            self._with_shares |= worker.bit
        self.set_images(worker, images)
        self.refresh(worker)
        return worker

    def remove(self, worker: WorkerRoom) -> None:
        """A worker has gone."""
        keep = ~worker.bit
        for masks in (*self._at_least, *self._gpus.values()):
            for level, mask in enumerate(masks):
                masks[level] = mask & keep
        self._with_gpus &= keep
        self._with_shares &= keep
        self._making &= keep
        self._loading &= keep
        self._closed &= keep
        self._crowded &= keep
        for place in worker.places:
            self._places[place] &= keep
            if not self._places[place]:
                del self._places[place]
        self.set_images(worker, ())
        self._workers[worker.position] = None

    def set_images(self, worker: WorkerRoom, images: Iterable[str]) -> None:
        """The images that a worker has."""
        new = set(images)
        for image_id in worker.images - new:
            self._by_image[image_id] = self._by_image.get(image_id, 0) & ~worker.bit
            if not self._by_image[image_id]:
                del self._by_image[image_id]
        for image_id in new:
            self._by_image[image_id] = self._by_image.get(image_id, 0) | worker.bit
        worker.images = new

    def refresh(self, worker: WorkerRoom) -> None:
        """What the worker offers has changed."""
        bit, levels = worker.bit, worker.levels
        for resource, amount in enumerate(worker.offered()):
            old, new = levels[resource], level_of(amount)
            if old != new:
                levels[resource] = new
                masks = self._at_least[resource]
                for level in range(old + 1, new + 1) if new > old else range(new + 1, old + 1):
                    masks[level] ^= bit
        for gpu, old in worker.offered_gpus.items():
            new = worker.offered_of(gpu)
            if old != new:
                worker.offered_gpus[gpu] = new
                masks = self._gpus[gpu]
                masks.extend([0] * (new + 1 - len(masks)))
                for count in range(old + 1, new + 1) if new > old else range(new + 1, old + 1):
                    masks[count] ^= bit

    def set_starts(self, worker: WorkerRoom) -> None:
        """The containers that the worker has, and those of them that are made and that import, have changed."""
        bit, capacity = worker.bit, worker.capacity
        self._making = self._making | bit if worker.making >= capacity.making else self._making & ~bit
        self._loading = self._loading | bit if worker.loading >= capacity.loading else self._loading & ~bit
        crowded = len(worker.placements) >= capacity.cpu // MILLICORES
        self._crowded = self._crowded | bit if crowded else self._crowded & ~bit

    def set_open(self, worker: WorkerRoom, is_open: bool) -> None:
        """Whether the worker is to have further containers."""
        self._closed = self._closed & ~worker.bit if is_open else self._closed | worker.bit

    def at(self, places: Iterable[str]) -> int:
        """The workers at any of these places, as bits. Where no worker is said to be anywhere, be it here or away, and
        for no places, all of them."""
        if not places or not (self._places or self.expected):
            return ~0
        found = 0
        for place in places:
            found |= self._places.get(place, 0)
        return found

    def suits(self, worker: WorkerRoom, request: Request, barred: int = 0) -> bool:
        """Whether the worker may have a container, if it has room for it; `barred` are those that will not."""
        return bool(worker.bit & self.at(request.places) & ~self._closed & ~barred)

    def find(
        self, request: Request, *, is_first: bool = False, now: bool = True, barred: int = 0
    ) -> tuple[WorkerRoom, GpuChoice] | None:
        """The worker that a container fits best, and its GPUs there: the tightest fit, on one that has the image where
        there is any, and on one with GPUs only for who needs them; of all these, first, on one with fewer containers
        than cores.

        `is_first` is said of a function's first container, for which cpu shares are no bound. `now` leaves out those
        that make as many containers already as they may; `barred` are left out in any case.
        """
        open_ = self.at(request.places) & ~self._closed & ~barred
        if now:
            open_ &= ~self._making
            if not is_first:
                open_ &= ~self._loading
        # Requests of cpu are mostly small shares: before cores are shared, those of other workers are used.
        found = self._find(request, request.cpu, open_ & ~self._crowded) or self._find(request, request.cpu, open_)
        if found is None and is_first and self._with_shares:
            found = self._find(request, 0, open_ & self._with_shares)
        return found

    def _find(self, request: Request, cpu: int, among: int) -> tuple[WorkerRoom, GpuChoice] | None:
        at_least_cpu, at_least_memory, at_least_disk = self._at_least
        among &= (
            at_least_cpu[level_of(cpu)]
            & at_least_memory[level_of(request.memory)]
            & at_least_disk[level_of(request.disk)]
        )
        if not among:
            return None
        if not request.gpus:
            without = among & ~self._with_gpus
            worker = self._near(request, cpu, without) if without else None
            if worker is None:
                worker = self._near(request, cpu, among & self._with_gpus)
            return None if worker is None else (worker, NO_GPU)
        for wanted in request.gpus:
            for gpu in self._types_for(wanted):
                masks = self._gpus[gpu]
                for count in range(wanted.count, len(masks)):
                    exactly = among & masks[count] & ~(masks[count + 1] if count + 1 < len(masks) else 0)
                    worker = self._near(request, cpu, exactly) if exactly else None
                    if worker is not None:
                        return worker, GpuChoice(gpu, wanted.count)
        return None

    def _types_for(self, wanted: GpuRequest) -> list[str]:
        types = self._types.get(wanted)
        if types is None:
            types = [gpu for gpu in self._gpus if wanted.accepts(gpu)]
            types.sort(key=lambda gpu: (self._gpu_memory[gpu], gpu))
            self._types[wanted] = types
        return types

    def _near(self, request: Request, cpu: int, among: int) -> WorkerRoom | None:
        """The best of these workers, one that has the image where there is any."""
        if request.image_id:
            with_image = among & self._by_image.get(request.image_id, 0)
            worker = self._tightest(request, cpu, with_image) if with_image else None
            if worker is not None:
                return worker
        return self._tightest(request, cpu, among)

    def _tightest(self, request: Request, cpu: int, among: int) -> WorkerRoom | None:
        """Of these workers the one of which least is left, among those of the lowest level of memory that fit."""
        masks = self._at_least[1]
        low = level_of(request.memory)
        while among:
            # The lowest level at which there is one: the first above which not all are.
            below, above = low, LEVELS
            while below < above:
                middle = (below + above) // 2
                if among & masks[middle + 1] == among:
                    below = middle + 1
                else:
                    above = middle
            higher = among & masks[below + 1]
            found = self._best(request, cpu, among ^ higher)
            if found is not None:
                return found
            among, low = higher, below + 1
        return None

    def _best(self, request: Request, cpu: int, among: int) -> WorkerRoom | None:
        memory, disk = request.memory, request.disk
        best: WorkerRoom | None = None
        least = 0.0
        seen = 0
        while among:
            bit = among & -among
            among ^= bit
            worker = self._workers[bit.bit_length() - 1]
            assert worker is not None
            free_cpu, free_memory, free_disk = worker.offered()
            # A level holds workers that offer a little less than what was asked for, too.
            if memory > free_memory or (cpu and cpu > free_cpu) or (disk and disk > free_disk):
                continue
            if request.cpu > worker.capacity.cpu:
                continue  # whatever shares of cpu are free
            left = (free_memory - memory) / worker.capacity.memory + (free_cpu - cpu) / worker.shares
            if best is None or left < least:
                best, least = worker, left
            seen += 1
            if seen == LOOKED_AT:
                break
        return best


def level_of(amount: int) -> int:
    """The level to which an amount belongs: 0 for nothing, four for each doubling. More is never a lower level."""
    if amount <= 0:
        return 0
    bits = amount.bit_length()
    fraction = amount >> (bits - 3) if bits > 2 else amount << (3 - bits)
    return min(LEVELS - 1, 4 * bits + (fraction & 3))
