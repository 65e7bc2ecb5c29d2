"""What this machine can hold: which containers fit beside those that are there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from farcall.errors import ResourceExhaustedError
from farcall.spec.function import FunctionSpec

CPU_OVERCOMMIT = (
    8.0  # cores requested for each core there is: requests are shares, and most containers wait most of the time
)
MEMORY_RESERVED = 512  # MiB left to the rest of the machine


@dataclass(frozen=True)
class Capacity:
    """Cores, and MiB of memory that containers may request in all."""

    cores: float
    memory: int

    @classmethod
    def of_this_machine(cls) -> Capacity:
        """As the kernel tells."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
        return cls(float(len(os.sched_getaffinity(0))), max(256, memory - MEMORY_RESERVED))

    def check(self, function: FunctionSpec) -> None:
        """Raises ResourceExhaustedError where no container of this function could ever be held here."""
        if function.cpu[0] > self.cores:
            raise ResourceExhaustedError(
                f"{function.name} asks for {function.cpu[0]:g} cores and this machine has {self.cores:g}: lower cpu="
            )
        if function.memory[0] > self.memory:
            raise ResourceExhaustedError(
                f"{function.name} asks for {function.memory[0]} MiB of memory and this machine has {self.memory} MiB "
                "for containers: lower memory="
            )

    def fits(self, function: FunctionSpec, others: Iterable[FunctionSpec]) -> bool:
        """Whether one more container of `function` fits beside containers of `others`."""
        cpu, memory = function.cpu[0], function.memory[0]
        for other in others:
            cpu += other.cpu[0]
            memory += other.memory[0]
        return memory <= self.memory and cpu <= self.cores * CPU_OVERCOMMIT
