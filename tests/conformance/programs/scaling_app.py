"""What the tests of scaling call."""

import time
import uuid

import farcall

app = farcall.App("scaling")
IDENTITY = uuid.uuid4().hex


@app.function(scaledown_window=2)
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return IDENTITY


@app.cls(max_containers=1)
class Meeting:
    @farcall.enter()
    def begin(self) -> None:
        self.here = 0

    @farcall.method()
    def arrive(self) -> None:
        self.here += 1

    @farcall.method()
    def count(self) -> int:
        return self.here


@app.function(scaledown_window=2)
def meet(others: int) -> tuple[str, float]:
    """Ends when so many have come; says where it ran and when it ended."""
    Meeting().arrive.remote()
    while Meeting().count.remote() < others:
        time.sleep(0.01)
    return IDENTITY, time.monotonic()


@app.function(scaledown_window=2, buffer_containers=2)
def buffered(seconds: float) -> str:
    time.sleep(seconds)
    return IDENTITY


@app.function(max_containers=1)
def from_inside() -> tuple[int, int]:
    """Changes another function's bounds; returns what then holds, and how many containers it has itself."""
    settings = nap.update_autoscaler(max_containers=7)
    return settings.max_containers or 0, from_inside.get_current_stats().num_total_runners


@app.cls(scaledown_window=2)
class Model:
    name: str = farcall.parameter()

    @farcall.method()
    def nap(self, seconds: float) -> str:
        time.sleep(seconds)
        return IDENTITY
