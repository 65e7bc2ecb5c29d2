"""Images that are built, beside what uv takes for the same packages; and starts of `farcall run` after an edit."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bench.peers import Measurement, Result, run
from bench.samples import median, seconds
from farcall.builder.builder import Builder
from farcall.builder.containers import StepContainers
from farcall.builder.images import Image
from farcall.content import Store
from farcall.interpreters.private import uv_executable
from farcall.spec.image import Apt, DebianBase, ImageSpec, Pip, Step
from farcall.worker.filesystems import Filesystems
from farcall.worker.worker import Worker

NAME = "farcall"
PACKAGES = ("numpy", "pandas")
TORCH = "torch==2.13.0"
SOURCE_FILES = 2_000

T = TypeVar("T")


class Workshop:
    """A builder on a store of its own, which is left when the benchmark is over."""

    def __init__(self, scratch: Path) -> None:
        self.store = Store(scratch / "content")
        self.scratch = scratch
        self._runner = asyncio.Runner()
        self._runner.run(self._open())

    async def _open(self) -> None:
        self.worker = Worker(self.scratch / "launcher", "bench", lambda *text: None, Filesystems(self.store))
        cache = self.scratch / "cache"
        self.builder = Builder(self.store, StepContainers(self.worker, cache), cache)

    def build(self, *steps: Step) -> Image:
        """Debian with these steps."""
        spec = ImageSpec(DebianBase(f"{sys.version_info.major}.{sys.version_info.minor}"), steps)
        return self._runner.run(self.builder.build(spec, {}, False, lambda event: None))

    def settle(self) -> None:
        """Waits for what goes on in the background: bytecode."""
        self._runner.run(self.builder.settle())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the builder's loop."""
        return self._runner.run(work)

    def close(self) -> None:
        async def close() -> None:
            await self.builder.close()
            await self.worker.close()

        self._runner.run(close())
        self._runner.close()


def packages(workshop: Workshop) -> Iterator[Result]:
    """numpy and pandas: built, and by uv into a new virtual environment; both have downloaded them before."""
    uv = uv_executable()
    assert uv is not None
    step = Pip("pip", PACKAGES, force=True)
    workshop.build(step)
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(4):
        begin = time.perf_counter()
        workshop.build(step)
        ours.append(time.perf_counter() - begin)
        venv = workshop.scratch / f"venv-{number}"
        environment = {**os.environ, "UV_CACHE_DIR": str(workshop.scratch / "uv"), "UV_LINK_MODE": "copy"}
        quiet = partial(subprocess.run, check=True, env=environment, stderr=subprocess.DEVNULL)
        quiet([uv, "venv", "--quiet", "--python", sys.executable, venv])
        taken = seconds(partial(quiet, [uv, "pip", "install", "--python", venv / "bin/python", *PACKAGES]))
        if number:  # the first one downloads
            theirs.append(taken)
    yield Result("build numpy and pandas", NAME, median(ours), len(ours))
    yield Result("build numpy and pandas", "uv pip install", median(theirs), len(theirs))
    yield Result("build beyond 1.2 times uv", NAME, median(ours) - 1.2 * median(theirs), len(ours))


def shared_bytes(workshop: Workshop) -> Iterator[Result]:
    """Two images that both have torch, made by steps that have nothing in common."""
    torch = Pip("pip", (TORCH,))
    before = workshop.store.statistics().object_bytes
    workshop.build(torch)
    workshop.settle()
    first = workshop.store.statistics().object_bytes - before
    workshop.build(Apt(("hello",)), torch)
    workshop.settle()
    second = workshop.store.statistics().object_bytes - before - first
    yield Result("second image with torch", NAME, 100 * second / first, 1)


def edits(scratch: Path) -> Iterator[Result]:
    """`farcall run` of a package of 2,000 modules, unchanged and after a line of one was changed."""
    package = scratch / "project" / "package"
    files: list[Path] = []
    for number in range(SOURCE_FILES):
        file = package / f"part{number // 50}" / f"module{number}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"VALUE = {number}\n" * 20)
        files.append(file)
    (package / "__init__.py").touch()
    (package / "main.py").write_text(
        "import farcall\napp = farcall.App('edits')\n@app.function()\ndef f():\n    return 1\n"
        "@app.local_entrypoint()\ndef main():\n    assert f.remote() == 1\n"
    )
    names = {"FARCALL_STATE_DIR": "s", "XDG_DATA_HOME": "d", "XDG_CACHE_HOME": "c", "XDG_CONFIG_HOME": "g"}
    environment = {**os.environ, **{name: str(scratch / folder) for name, folder in names.items()}}
    command = [sys.executable, "-m", "farcall"]
    call: Callable[..., Any] = partial(
        subprocess.run, check=True, env=environment, cwd=package.parent, stdout=subprocess.DEVNULL
    )
    one_run = partial(call, [*command, "run", "-q", "-m", "package.main"])
    try:
        for _ in range(3):
            one_run()
        unchanged: list[float] = []
        changed: list[float] = []
        for number in range(8):
            time.sleep(2.1)  # what was written just now is looked at again
            unchanged.append(seconds(one_run))
            files[number].write_text(f"VALUE = {number} + 1\n")
            changed.append(seconds(one_run))
    finally:
        call([*command, "server", "stop", "--force"], stderr=subprocess.DEVNULL)
    yield Result("run after an edit", "edited", 1e3 * median(changed), len(changed))
    yield Result("run after an edit", "unchanged", 1e3 * median(unchanged), len(unchanged))
    yield Result("edit", NAME, 1e3 * (median(changed) - median(unchanged)), len(changed))


@contextmanager
def peer() -> Generator[Mapping[str, Measurement]]:
    # Left for the benchmark's own end: removing many files makes the next round slow.
    scratch = Path(tempfile.mkdtemp(prefix="builds-"))
    workshop = Workshop(scratch)
    try:
        yield {
            "packages": partial(packages, workshop),
            "shared bytes": partial(shared_bytes, workshop),
            "edits": partial(edits, scratch),
        }
    finally:
        workshop.close()


if __name__ == "__main__":
    run(peer)
