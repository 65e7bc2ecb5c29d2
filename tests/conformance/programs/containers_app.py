"""What the tests of containers call."""

import asyncio
import os
import signal
import time
import uuid

import farcall

app = farcall.App("containers")
IDENTITY = uuid.uuid4().hex
imports: list[str] = ["import"]


@app.cls(max_containers=1)
class Hooks:
    @farcall.enter(snap=True)
    def first(self) -> None:
        self.events = [*imports, "enter snap"]

    @farcall.enter()
    def second(self) -> None:
        self.events.append("enter")

    @farcall.enter()
    async def third(self) -> None:
        await asyncio.sleep(0)
        self.events.append("async enter")

    @farcall.method()
    def sync_method(self) -> list[str]:
        self.events.append("input")
        return self.events

    @farcall.method()
    async def async_method(self) -> list[str]:
        self.events.append("async input")
        return self.events


class Base:
    @farcall.enter()
    def base_enter(self) -> None:
        self.events = ["base"]

    @farcall.method()
    def report(self) -> list[str]:
        return self.events


@app.cls()
class Derived(Base):
    @farcall.enter()
    def derived_enter(self) -> None:
        self.events.append("derived")


@app.cls()
class AsyncOnly:
    @farcall.enter()
    async def begin(self) -> None:
        self.value = 42

    @farcall.method()
    async def get(self) -> int:
        return self.value


@app.cls()
class Model:
    name: str = farcall.parameter()
    size: int = farcall.parameter(default=1)
    key: bytes = farcall.parameter(default=b"k")
    fast: bool = farcall.parameter(default=False)

    @farcall.method()
    def describe(self) -> tuple[str, int, bytes, bool]:
        return self.name, self.size, self.key, self.fast

    @farcall.method()
    def identity(self) -> str:
        return IDENTITY


@app.cls()
class Positional:
    def __init__(self, a: int, b: str = "b") -> None:
        self.both = a, b

    @farcall.method()
    def get(self) -> tuple[int, str]:
        return self.both


@app.function(single_use_containers=True)
def single_use() -> str:
    return IDENTITY


@app.function(max_containers=1)
def one_container(seconds: float) -> str:
    time.sleep(seconds)
    return IDENTITY


@app.function(max_containers=3)
def three_containers(seconds: float) -> str:
    time.sleep(seconds)
    return IDENTITY


@app.function(memory=128)
def allocate(mib: int) -> int:
    return len(bytearray(os.urandom(1024) * 1024 * mib))


@app.function(memory=(64, 256))
def allocate_to_limit(mib: int) -> int:
    return len(bytearray(os.urandom(1024) * 1024 * mib))


@app.function(env={"FROM_ENV": "env"}, secrets=[farcall.Secret.from_dict({"FROM_SECRET": "secret", "FROM_ENV": "x"})])
def environment(name: str) -> str | None:
    return os.environ.get(name)


@app.function()
def arguments_of_process() -> tuple[int, int, list[str]]:
    return os.getpid(), os.getppid(), sorted(os.listdir("/proc/1/task"))


@app.function()
def child_of_multiprocessing(n: int) -> list[int]:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(_square, range(n))


def _square(x: int) -> int:
    return x * x


@app.function()
def subprocess_output() -> str:
    import subprocess

    return subprocess.run(["echo", "from a child"], capture_output=True, text=True, check=True).stdout


@app.function()
def end_by(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@app.function(cpu=100_000)
def too_many_cores() -> None: ...


@app.function(memory=100_000_000)
def too_much_memory() -> None: ...


@app.function(enable_memory_snapshot=True)
def from_snapshot() -> None: ...
