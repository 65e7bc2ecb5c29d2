"""What the tests of placement call."""

import os
import time

import farcall

app = farcall.App("placement")

# MiB of memory of which no two fit beside each other, whatever else is kept for the machine. Requests, not limits:
# nothing of it is used.
HALF = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 // 2 + 1


@app.function(scaledown_window=2)
def where(seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return os.environ["FARCALL_CONTAINER_ID"]


@app.function(memory=(HALF, 2 * HALF), scaledown_window=60, region="number=1")  # of two workers, where there are two
def large(seconds: float) -> int:
    time.sleep(seconds)
    return 1


@app.cls(max_containers=1, cpu=0.05, scaledown_window=2)
class Meeting:
    """Where containers hear of each other."""

    @farcall.enter()
    def begin(self) -> None:
        self.here: list[str] = []

    @farcall.method()
    def arrive(self, name: str) -> None:
        self.here.append(name)

    @farcall.method()
    def names(self) -> list[str]:
        return self.here


@app.function(scaledown_window=2)
def meet(others: int) -> str:
    """Ends when so many containers have come."""
    name = os.environ["FARCALL_CONTAINER_ID"]
    Meeting().arrive.remote(name)
    while len(set(Meeting().names.remote())) < others:
        time.sleep(0.01)
    return name


# Functions whose containers each ask for all cores there are, of which one calls the other.
ALL = float(len(os.sched_getaffinity(0)))


@app.function(cpu=ALL, scaledown_window=2)
def outer(number: int) -> int:
    return inner.remote(number)


@app.function(cpu=ALL, scaledown_window=2)
def inner(number: int) -> int:
    return number + 1
