"""What this machine has for containers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from farcall.wire.workers import Offer

if TYPE_CHECKING:
    from farcall.worker.gpus import Gpus

CPU_OVERCOMMIT = (
    8.0  # cores requested for each core there is: requests are shares, and most containers wait most of the time
)
MEMORY_RESERVED = 512  # MiB left to the rest of the machine
DISK_RESERVED = 1024  # MiB, the same


def of_this_machine(disk: Path, found: Gpus) -> Offer:
    """As the kernel tells. `disk` is where containers write: what is free there now can be asked for."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    return Offer(
        cpu=len(os.sched_getaffinity(0)) * 1000,
        memory=max(256, memory - MEMORY_RESERVED),
        disk=max(0, shutil.disk_usage(disk).free // 2**20 - DISK_RESERVED),
        gpus=tuple(_of_type(found, kind) for kind in found.counts()),
        cpu_overcommit=CPU_OVERCOMMIT,
    )


def _of_type(found: Gpus, kind: str) -> tuple[str, tuple[int, ...], int]:
    mine = [gpu for gpu in found.gpus if gpu.type == kind]
    return kind, tuple(gpu.number for gpu in mine), min(gpu.memory for gpu in mine)
