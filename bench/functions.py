"""What the benchmark runs in farcall's containers. What is imported here is part of each container's start."""

import os
import time
from typing import Any

import farcall

app = farcall.App("bench")

# A variable that only the start of an interpreter honours: such a container is started by exec, never by fork.
_BY_EXEC = {"PYTHONHASHSEED": "0"}


@app.function(max_containers=1)
def echo(value: Any) -> Any:
    return value


@app.function(max_containers=2)
def noop(value: int) -> int:
    return value


@app.function(single_use_containers=True)
def first_line_after_fork() -> float:
    return time.monotonic()


@app.function(single_use_containers=True, env=_BY_EXEC)
def first_line_after_exec() -> float:
    return time.monotonic()


@app.function(single_use_containers=True, cpu=0.01, memory=(16, 256))
def one_of_many(_: int) -> str:
    return os.environ["FARCALL_CONTAINER_ID"]


@app.function(max_containers=50, cpu=0.01, memory=(16, 256), scaledown_window=2)
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ["FARCALL_CONTAINER_ID"]


@app.function(max_containers=50, cpu=0.01, memory=(16, 256), scaledown_window=5)
def in_a_burst(seconds: float) -> None:
    time.sleep(seconds)


@app.function(max_containers=1, cpu=0.01, memory=(16, 256))
def occupied(_: int) -> None:
    """Keeps its one container, so that what else is spawned waits."""
    time.sleep(3600)


@app.function(max_containers=1, cpu=0.01, memory=(16, 256))
def one_by_one(number: int) -> int:
    time.sleep(0.02)
    return number


@app.function(max_containers=1)
def namespace_after_fork() -> str:
    return os.readlink("/proc/self/ns/pid")


@app.function(max_containers=1, env=_BY_EXEC)
def namespace_after_exec() -> str:
    return os.readlink("/proc/self/ns/pid")


def numbered_apps(apps: int, functions: int) -> list[farcall.App]:
    """Apps of their own with so many functions each."""
    made = [farcall.App(f"bench-{number}") for number in range(apps)]
    for one in made:
        for number in range(functions):
            one.function(name=f"f{number}", serialized=True, cpu=0.01, memory=(16, 256), scaledown_window=2)(
                lambda value: value
            )
    return made
