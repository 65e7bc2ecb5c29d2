"""Real containers for tests: a launcher on a state directory, and a runner that runs the code it is given.

No pytest in here: test_rootless runs it under another user's Python.
"""

import asyncio
import os
import select
import shutil
import socket
import sys
import sysconfig
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

import farcall.errors
from farcall.launcher.client import ContainerFds, LauncherClient, StartedContainer
from farcall.launcher.messages import Exited
from farcall.spec.container import ContainerSpec, Interpreter, Limits

_BOOTSTRAP = """
import os, sys
sys.path[0] = os.environ["FARCALL_RUNNER_PATH"]
from farcall.runner.main import main
main()
"""
_MAIN = """
def main():
    import os, sys
    exec(compile(os.environ["CODE"], "<code>", "exec"), {"__name__": "__main__", "os": os, "sys": sys})
"""
PATIENCE = 30.0  # seconds; only a failing test waits this long

_T = TypeVar("_T")


def make_runner(directory: Path) -> Path:
    """A runner directory as a real one is laid out, whose main runs the code in $CODE."""
    package = Path(farcall.errors.__file__).parent
    (directory / "farcall/runner").mkdir(parents=True)
    shutil.copy(package / "errors.py", directory / "farcall")
    for name in ("farcall", "farcall/runner"):
        (directory / name / "__init__.py").touch()
    for name in ("launcher", "settings", "spec"):
        shutil.copytree(package / name, directory / "farcall" / name, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "farcall/runner/bootstrap.py").write_text(_BOOTSTRAP)
    (directory / "farcall/runner/main.py").write_text(_MAIN)
    shutil.copytree(Path(msgspec.__file__).parent, directory / "msgspec")
    return directory


def this_interpreter(runner: Path) -> Interpreter:
    """The Python that runs this, as an interpreter for containers."""
    paths = {sys.prefix, sys.base_prefix, *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib"))}
    version = ".".join(map(str, sys.version_info[:3]))
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return Interpreter(sys.executable, version, tag, tuple(sorted(paths)), str(runner))


class Running:
    """A container that runs: its descriptors on this side, and its end."""

    def __init__(self, rig: "Rig", started: StartedContainer, control: socket.socket, stdout: int, page: int) -> None:
        self.started = started
        self.id = started.container_id
        self.pid = started.pid
        self.notes = started.notes
        self.control = control
        self.page = page
        self._rig = rig
        self._stdout = stdout
        self.output = b""

    def read_line(self) -> str:
        """The next line of its output."""
        return self._rig.wait(self._read_until(lambda: b"\n" in self.output)).partition("\n")[0]

    def result(self) -> "Result":
        """Wait for its end."""
        output = self._rig.wait(self._read_until(lambda: False))
        exited = self._rig.wait(self._rig.exit_of(self.id))
        self.close()
        return Result(exited, output, self.started)

    def close(self) -> None:
        """Close this side's descriptors."""
        self.control.close()
        for fd in (self._stdout, self.page, self.started.pidfd):
            if fd >= 0:
                os.close(fd)
        self._stdout = -1

    async def _read_until(self, enough: Callable[[], bool]) -> str:
        loop = asyncio.get_running_loop()
        while not enough():
            readable = asyncio.Event()
            loop.add_reader(self._stdout, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(self._stdout)
            data = os.read(self._stdout, 65536)
            if not data:
                break
            self.output += data
        text, self.output = self.output, b""
        return text.decode()


class Result(NamedTuple):
    """How a container ended."""

    exited: Exited
    output: str
    started: StartedContainer


class Rig:
    """A launcher on a state directory, with synchronous calls. Close it."""

    def __init__(self, state: Path, interpreter: Interpreter) -> None:
        self.state = state
        self.interpreter = interpreter
        self.exits: dict[str, Exited] = {}
        self.lost = False
        self._count = 0
        self._runner = asyncio.Runner()
        self._news = self._runner.run(_make(asyncio.Event))
        self.connect()

    def connect(self) -> None:
        """Connect, starting the launcher if there is none."""
        self.client = self.wait(LauncherClient.connect(self.state))
        self.client.on_exit = self._on_exit
        self.client.on_lost = self._on_lost

    def wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the client's loop."""
        return self._runner.run(asyncio.wait_for(work, PATIENCE))

    def start(self, code: str, **spec: Any) -> Running:
        """Start a container that runs `code`; network blocked unless asked for."""
        return self.wait(self.start_async(code, **spec))

    async def start_async(self, code: str, **spec: Any) -> Running:
        """`start` on the client's loop."""
        self._count += 1
        spec.setdefault("container_id", f"ta-{os.getpid()}-{self._count}")
        spec.setdefault("limits", Limits())
        spec.setdefault("block_network", True)
        spec.setdefault("interpreter", self.interpreter)
        spec["env"] = {**spec.get("env", {}), "CODE": code}
        ours, theirs = socket.socketpair()
        stdout, stdout_far = os.pipe()
        page = os.memfd_create("page", os.MFD_CLOEXEC)
        os.ftruncate(page, 4096)
        try:
            fds = ContainerFds(theirs.fileno(), stdout_far, stdout_far, page)
            started = await self.client.start(ContainerSpec(**spec), fds)
        except BaseException:
            ours.close()
            os.close(stdout)
            os.close(page)
            raise
        finally:
            theirs.close()
            os.close(stdout_far)
        return Running(self, started, ours, stdout, page)

    def run(self, code: str, **spec: Any) -> Result:
        """Start a container and wait for its end."""
        return self.start(code, **spec).result()

    def area_of(self, container_id: str) -> Path:
        """The writable area of a container that runs."""
        entry = self.state / "journal" / f"{container_id}.json"
        eventually(entry.exists, "a container's journal entry")
        return Path(msgspec.json.decode(entry.read_bytes())["area"])

    async def exit_of(self, container_id: str) -> Exited:
        """Wait until a container has ended."""
        while container_id not in self.exits:
            self._news.clear()
            await self._news.wait()
        return self.exits.pop(container_id)

    async def loss(self) -> None:
        """Wait until the launcher is gone."""
        while not self.lost:
            self._news.clear()
            await self._news.wait()

    def close(self) -> None:
        """End the launcher, and see that nothing is left."""
        if self.lost:
            self.lost = False
            self.connect()
        self.wait(self.client.shutdown())
        self._runner.close()

    def _on_exit(self, exited: Exited) -> None:
        self.exits[exited.container_id] = exited
        self._news.set()

    def _on_lost(self) -> None:
        self.lost = True
        self._news.set()


async def _make(kind: Callable[[], _T]) -> _T:
    return kind()


def gone(pidfd: int) -> bool:
    """The process of a pidfd has ended, within PATIENCE."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(PATIENCE * 1000))


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait for something that gives no event; fails after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.005)


def cgroups_of(state: Path) -> list[str]:
    """All cgroup directories of a state directory's launcher."""
    from farcall.launcher.process import name_of

    found: list[str] = []
    for directory, names, _ in os.walk("/sys/fs/cgroup"):
        found += [os.path.join(directory, name) for name in names if name == f"farcall-{name_of(state)}"]
    return [entry.path for parent in found for entry in os.scandir(parent) if entry.is_dir()]
