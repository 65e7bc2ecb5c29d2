"""What containers ask for and workers have, in whole numbers: sums of them never drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

from farcall.spec.function import FunctionSpec
from farcall.spec.gpu import GpuRequest

MILLICORES = 1000  # of a core


class Gpus(NamedTuple):
    """The GPUs of one type of a worker, by their numbers there."""

    type: str
    indices: tuple[int, ...]
    memory: int = 0
    """MiB of one of them, 0 where it is not known."""


@dataclass(frozen=True, slots=True)
class GpuChoice:
    """What a container gets of what it would take: so many GPUs of one type. `type` is "" for none."""

    type: str = ""
    count: int = 0


NO_GPU = GpuChoice()


@dataclass(frozen=True, slots=True)
class Request:
    """What one container asks for: millicores, and MiB of memory and disk that are its own. `gpus` are alternatives,
    the most wanted first; () for none. A worker that has `image_id` already is the better one. `places` are words of
    which its worker must have one, where workers have any; () for any worker."""

    cpu: int
    memory: int
    disk: int = 0
    gpus: tuple[GpuRequest, ...] = ()
    image_id: str = ""
    places: tuple[str, ...] = ()

    @classmethod
    def of(cls, function: FunctionSpec) -> Request:
        """That of a function's containers. Disk counts where it was asked for: what every container may write by
        default is a limit, and hardly ever used."""
        return cls(
            cpu=ceil(function.cpu[0] * MILLICORES),
            memory=function.memory[0],
            disk=function.disk or 0,
            gpus=function.gpus,
            image_id=function.image_id,
            places=function.regions,
        )


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a worker has for containers: millicores, MiB of memory and of disk, GPUs.

    With `cpu_overcommit` requests of cpu are shares: so many times the cores can be requested, and the first
    container of a function finds room whatever was. One container can never ask for more than there is.
    """

    cpu: int
    memory: int
    disk: int = 0
    gpus: tuple[Gpus, ...] = ()
    cpu_overcommit: float = 1.0
    making: int = 4
    """Containers that are made at once: more would only share the cores."""
    loading: int = 16
    """Containers that are made or importing at once, besides the first ones of their functions."""

    @property
    def cpu_shares(self) -> int:
        """Millicores that can be requested in all."""
        return int(self.cpu * self.cpu_overcommit)

    def gpus_for(self, wanted: GpuRequest) -> list[Gpus]:
        """The types here of which there are enough, the smallest first."""
        return sorted(
            (gpus for gpus in self.gpus if wanted.accepts(gpus.type) and len(gpus.indices) >= wanted.count),
            key=lambda gpus: (gpus.memory, gpus.type),
        )

    def lacks(self, request: Request) -> str:
        """What keeps an empty worker from holding this: "cpu", "memory", "disk" or "gpu"; "" where nothing does."""
        for name in ("cpu", "memory", "disk"):
            if getattr(request, name) > getattr(self, name):
                return name
        return "gpu" if request.gpus and not any(map(self.gpus_for, request.gpus)) else ""


@dataclass(slots=True)
class Amounts:
    """Sums of what containers hold, GPUs by type."""

    cpu: int = 0
    memory: int = 0
    disk: int = 0
    gpus: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, request: Request, gpu: GpuChoice, times: int = 1) -> None:
        """Adds what so many containers hold; with `times` below 0 it is taken away."""
        self.cpu += times * request.cpu
        self.memory += times * request.memory
        self.disk += times * request.disk
        if gpu.count:
            self.gpus[gpu.type] = self.gpus.get(gpu.type, 0) + times * gpu.count

    def share_of(self, totals: Amounts) -> float:
        """The largest part that this is of any of the totals: the dominant share."""
        share = max(self.cpu / (totals.cpu or 1), self.memory / (totals.memory or 1), self.disk / (totals.disk or 1))
        for gpu, count in self.gpus.items():
            if count:
                share = max(share, count / (totals.gpus.get(gpu) or 1))
        return share


def describe_gpus(gpus: Mapping[str, int]) -> str:
    """For people: "T4 (4), H100 (8)"."""
    return ", ".join(f"{kind} ({count})" for kind, count in sorted(gpus.items()))
