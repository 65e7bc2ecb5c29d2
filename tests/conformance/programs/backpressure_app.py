"""What the tests of backpressure call."""

import threading
import time

import farcall

app = farcall.App("backpressure")


@app.cls(max_containers=1)
class Maker:
    """Makes large results, and knows how many."""

    @farcall.enter()
    def begin(self) -> None:
        self.made = 0

    @farcall.method()
    def block(self, size: int) -> bytes:
        self.made += 1
        return bytes(size)

    @farcall.method()
    def count(self) -> int:
        return self.made


@app.cls(max_containers=1)
@farcall.concurrent(max_inputs=100)
class Gate:
    """Holds its inputs until it is opened."""

    @farcall.enter()
    def begin(self) -> None:
        self.opened = threading.Event()

    @farcall.method()
    def enter(self, data: bytes) -> int:
        self.opened.wait()
        return len(data)

    @farcall.method()
    def open(self) -> None:
        self.opened.set()

    @farcall.method()
    def ping(self) -> bool:
        return self.opened.is_set()


@app.function(max_containers=2, retries=farcall.Retries(max_retries=2, initial_delay=0.0))
def late(index: int, size: int) -> bytes:
    """The first result comes last."""
    time.sleep(1.0 if index == 0 else 0.0)
    return index.to_bytes(8) + bytes(size)


@app.function()
def large_map(n: int, size: int) -> int:
    """A map of a container's."""
    return sum(len(part) for part in late.map(range(1, n + 1), kwargs={"size": size}))
