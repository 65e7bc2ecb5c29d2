"""Why a container cannot be, or not yet: for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from farcall.server.resources import MILLICORES, Capacity, Request, describe_gpus

if TYPE_CHECKING:
    from farcall.server.demand import AppUsage, Demand
    from farcall.server.room import Index, WorkerRoom

_NAMED = 3  # apps that are named as those who hold what is wanted


def impossible(name: str, request: Request, capacities: Sequence[Capacity]) -> str:
    """Why no worker could ever hold a container of `name`, and what there is; "" where one could."""
    if not capacities:
        return f"{name} cannot run: there is no worker{_where(request)}; see `farcall worker list`"
    if not all(capacity.lacks(request) for capacity in capacities):
        return ""
    there = "this machine has" if len(capacities) == 1 else "the largest worker has"
    cores = max(capacity.cpu for capacity in capacities)
    if request.cpu > cores:
        return f"{name} asks for {_cores(request.cpu)} and {there} {cores / MILLICORES:g}: lower cpu="
    memory = max(capacity.memory for capacity in capacities)
    if request.memory > memory:
        return f"{name} asks for {request.memory} MiB of memory and {there} {memory} MiB for containers: lower memory="
    disk = max(capacity.disk for capacity in capacities)
    if request.disk > disk:
        return f"{name} asks for {request.disk} MiB of disk and {there} {disk} MiB free: lower ephemeral_disk="
    if request.gpus and not any(capacity.gpus_for(wanted) for capacity in capacities for wanted in request.gpus):
        most: dict[str, int] = {}
        for capacity in capacities:
            for gpus in capacity.gpus:
                most[gpus.type] = max(most.get(gpus.type, 0), len(gpus.indices))
        where = "this machine" if len(capacities) == 1 else "no worker"
        has = "has no GPU" if len(capacities) == 1 else "has a GPU"
        has = f"{'has' if len(capacities) == 1 else 'has more than'} {describe_gpus(most)}" if most else has
        return f"{name} asks for {_gpus(request)} and {where} {has}: change gpu="
    return f"{name} asks for {_all(request)}, and no worker has all of that"


def why(index: Index, workers: Sequence[WorkerRoom], demand: Demand) -> str:
    """Why a demand has to wait."""
    request = demand.request
    if not workers:
        return "waiting for a worker to join: `farcall worker list` shows those that have"
    workers = [worker for worker in workers if worker.bit & index.at(request.places)]
    if not workers and not index.expected.isdisjoint(request.places):
        return f"waiting for a worker{_where(request)} to come back: see `farcall worker list`"
    if workers and not any(index.suits(worker, request, demand.barred) for worker in workers):
        return "waiting for a worker: all are being drained, or will not have it (`farcall worker list`)"
    never = impossible(demand.name, request, [worker.capacity for worker in workers])
    if never:
        return never
    if demand.claim is not None:
        retiring = [placement for placement in demand.claim.retiring if placement.is_retiring]
        if retiring:
            names = ", ".join({placement.demand.app.name: None for placement in retiring})
            return f"waiting for {_count(len(retiring), 'container')} of {names} to finish, to have room"
        return "waiting for idle containers to end, to have room"
    if index.find(request, is_first=demand.live == 0, now=False, barred=demand.barred) is not None:
        return "waiting for other containers to start first"
    could = [worker for worker in workers if not worker.capacity.lacks(request)]
    where = "this machine" if len(workers) == 1 else _count(len(could), "worker")
    return f"waiting for room on {where}: {_short(could, request) or 'what is free is on different workers'}"


def _short(could: Sequence[WorkerRoom], request: Request) -> str:
    """What of it no worker has enough of, and who has it."""

    def free(what: Callable[[WorkerRoom], int]) -> int:
        return max(0, *map(what, could)) if len(could) > 1 else max(0, what(could[0]))

    memory = free(lambda worker: worker.offered()[1])
    if request.memory > memory:
        return (
            f"it needs {request.memory} MiB of memory and {memory} MiB are free"
            f"{_holders(could, lambda app: app.held.memory, ' MiB')}"
        )
    if request.gpus:
        fitting = {
            gpus.type: None for worker in could for wanted in request.gpus for gpus in worker.capacity.gpus_for(wanted)
        }
        enough = any(
            worker.offered_of(gpus.type) >= wanted.count
            for worker in could
            for wanted in request.gpus
            for gpus in worker.capacity.gpus_for(wanted)
        )
        if not enough:
            left = {gpu: free(lambda worker, gpu=gpu: len(worker.free_gpus.get(gpu, ()))) for gpu in fitting}
            return (
                f"it needs {_gpus(request)} and free are {describe_gpus(left)}"
                f"{_holders(could, lambda app: sum(app.held.gpus.get(gpu, 0) for gpu in fitting), '')}"
            )
    disk = free(lambda worker: worker.offered()[2])
    if request.disk > disk:
        return (
            f"it needs {request.disk} MiB of disk and {disk} MiB are free"
            f"{_holders(could, lambda app: app.held.disk, ' MiB')}"
        )
    cpu = free(lambda worker: worker.offered()[0])
    if request.cpu > cpu:
        return (
            f"it needs {_cores(request.cpu)} and shares of {cpu / MILLICORES:g} are free"
            f"{_holders(could, lambda app: round(app.held.cpu / MILLICORES, 3), ' cores')}"
        )
    return ""


def _holders(could: Sequence[WorkerRoom], amount: Callable[[AppUsage], float], unit: str) -> str:
    held: Mapping[AppUsage, float] = {
        placement.demand.app: amount(placement.demand.app) for worker in could for placement in worker.placements
    }
    largest = sorted((app for app in held if held[app] > 0), key=lambda app: -held[app])[:_NAMED]
    if not largest:
        return ""
    return "; " + ", ".join(f"{app.name} has {held[app]:g}{unit}" for app in largest)


def _where(request: Request) -> str:
    return f" with region={' or '.join(map(repr, request.places))}" if request.places else ""


def _cores(millicores: int) -> str:
    return f"{millicores / MILLICORES:g} core{'' if millicores == MILLICORES else 's'}"


def _gpus(request: Request) -> str:
    return "gpu=" + " or ".join(map(str, request.gpus))


def _all(request: Request) -> str:
    parts = [_cores(request.cpu), f"{request.memory} MiB of memory"]
    parts += [f"{request.disk} MiB of disk"] * bool(request.disk) + [_gpus(request)] * bool(request.gpus)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
