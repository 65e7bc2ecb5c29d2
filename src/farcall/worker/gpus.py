"""The GPUs of one machine: which there are, and what a container needs of the host to use some of them.

A container sees the device nodes of its own GPUs, those that all share, and the driver's libraries. These must be the
ones that belong to the host's kernel module, so no image can bring them.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from farcall.spec.container import Bind
from farcall.spec.gpu import parse_simulated, type_of
from farcall.worker import nvml

LIBRARY = "libnvidia-ml.so.1"
INSIDE = "/run/nvidia"  # where an image's container has the driver: a place that every container can mount at

# What all containers with a GPU share; those that a driver has.
_CONTROL = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
_LIBRARIES = re.compile(r"(libcuda|libcudadebugger|libnvcuvid|libnvoptix|libnvidia-[a-z0-9-]+)\.so(\.\d+)*")
_FOLDERS = ("usr/lib/{machine}-linux-gnu", "usr/lib64", "usr/lib", "usr/lib/wsl/lib", "run/opengl-driver/lib")


class Gpu(NamedTuple):
    """One GPU: its number on this machine, and its type as functions ask for it. `memory` is MiB, 0 where it is not
    known; `device` is its node, "" for one that is simulated."""

    number: int
    type: str
    memory: int = 0
    uuid: str = ""
    device: str = ""


class Gpus(NamedTuple):
    """The GPUs of a machine. `problem` says why a driver that is there gives none."""

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    binds: tuple[Bind, ...] = ()
    """What containers from images see of the host beside the device nodes."""
    control: tuple[str, ...] = ()
    problem: str = ""

    @property
    def is_simulated(self) -> bool:
        """Whether they are only there for trying."""
        return any(not gpu.device for gpu in self.gpus)

    def counts(self) -> dict[str, int]:
        """How many there are of each type."""
        counts: dict[str, int] = {}
        for gpu in self.gpus:
            counts[gpu.type] = counts.get(gpu.type, 0) + 1
        return counts

    def binds_for(self, numbers: Sequence[int], *, image: bool) -> tuple[Bind, ...]:
        """What a container with the GPUs of these numbers sees of the host. Without an image it has the host's
        libraries anyway."""
        if not numbers or self.is_simulated:
            return ()
        nodes = (*self.control, *(self.gpus[number].device for number in numbers))
        binds = tuple(Bind(node, f"/dev/{os.path.basename(node)}", read_only=False) for node in nodes)
        return binds + (self.binds if image else ())

    def environment_for(self, numbers: Sequence[int], environment: Mapping[str, str], *, image: bool) -> dict[str, str]:
        """The variables of such a container, beside or in place of those in `environment`."""
        if not numbers:
            return {}
        if self.is_simulated:
            return {
                "CUDA_VISIBLE_DEVICES": ",".join(map(str, numbers)),
                "FARCALL_SIMULATED_GPU": f"{self.gpus[numbers[0]].type}:{len(numbers)}",
            }
        # By name: the numbers in a container are not those of the machine.
        found = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus[number].uuid for number in numbers)}
        if image:
            before = environment.get("LD_LIBRARY_PATH", "")
            found["LD_LIBRARY_PATH"] = f"{INSIDE}/lib:{before}" if before else f"{INSIDE}/lib"
        return found


def simulated(counts: Mapping[str, int]) -> Gpus:
    """GPUs that are not there: containers get numbers, and no devices."""
    types = [kind for kind, count in counts.items() for _ in range(count)]
    return Gpus(tuple(Gpu(number, kind) for number, kind in enumerate(types)))


def found_or_simulated(counts: str | None) -> Gpus:
    """Those that there are, or those of a setting such as "T4=4,H100=8". Raises InvalidError where it is none."""
    if counts:
        return simulated(parse_simulated(counts))
    found = discover()
    if found.problem:
        logging.getLogger("farcall.worker").warning("no GPU can be used: %s", found.problem)
    return found


def discover(root: Path = Path("/")) -> Gpus:
    """The GPUs that the driver of this machine knows; none where there is no driver. `root` is where /dev and the
    libraries are."""
    if not (root / "dev/nvidiactl").exists():
        return Gpus()
    libraries = _libraries(root)
    library = next((str(path) for path in libraries if path.name == LIBRARY), LIBRARY)
    try:
        version, devices = nvml.devices(library)
    except nvml.NvmlError as error:
        return Gpus(problem=str(error))
    gpus: list[Gpu] = []
    for number, device in enumerate(devices):
        node = root / f"dev/nvidia{device.minor}"
        if not node.exists():
            return Gpus(driver=version, problem=f"{node} is missing, the node of {device.name} {device.uuid}")
        gpus.append(Gpu(number, type_of(device.name, device.memory), device.memory, device.uuid, str(node)))
    binds = [Bind(str(path), f"{INSIDE}/lib/{path.name}") for path in libraries]
    tool = root / "usr/bin/nvidia-smi"
    if tool.exists():
        binds.append(Bind(str(tool), f"{INSIDE}/bin/nvidia-smi"))
    control = tuple(str(root / node[1:]) for node in _CONTROL if (root / node[1:]).exists())
    return Gpus(tuple(gpus), version, tuple(binds), control)


def _libraries(root: Path) -> list[Path]:
    """The driver's libraries under each name that a program may load them by: of the first folder that has them."""
    machine = os.uname().machine
    for folder in (root / name.format(machine=machine) for name in _FOLDERS):
        if (folder / LIBRARY).exists():
            names = sorted(name for name in os.listdir(folder) if _LIBRARIES.fullmatch(name))
            return [folder / name for name in names if (folder / name).exists()]
    return []
