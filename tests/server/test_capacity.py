"""What fits on a machine."""

import pytest

from farcall.errors import ResourceExhaustedError
from farcall.server.capacity import CPU_OVERCOMMIT, Capacity
from farcall.spec.function import FunctionSpec, Source

MACHINE = Capacity(cores=2.0, memory=1024)


def function(cpu: float = 0.125, memory: int = 128) -> FunctionSpec:
    return FunctionSpec("fu-1", "f", Source("m", "f"), (), cpu=(cpu, None), memory=(memory, None))


def test_memory_is_not_overcommitted() -> None:
    assert MACHINE.fits(function(memory=512), [function(memory=512)])
    assert not MACHINE.fits(function(memory=513), [function(memory=512)])


def test_cpu_is_overcommitted_by_a_factor() -> None:
    others = [function(cpu=1.0, memory=1)] * int(2 * CPU_OVERCOMMIT - 1)
    assert MACHINE.fits(function(cpu=1.0, memory=1), others)
    assert not MACHINE.fits(function(cpu=1.0, memory=1), [*others, function(cpu=0.1, memory=1)])


def test_what_could_never_fit_says_what_there_is() -> None:
    with pytest.raises(ResourceExhaustedError, match=r"f asks for 4 cores and this machine has 2"):
        MACHINE.check(function(cpu=4))
    with pytest.raises(ResourceExhaustedError, match=r"2048 MiB of memory and this machine has 1024"):
        MACHINE.check(function(memory=2048))
