"""What the kills and the soak do to farcall, and the record of it, by which errors are judged."""

import contextlib
import math
import os
import select
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import descendants

DEATH = 60.0  # seconds that a killed process may take to be gone
NOTICED = 5.0  # seconds after a server's death until every thread of a program knows of it
AFTERMATH = 30.0  # seconds after a disk was full in which something that was begun before may still fail for it


class Faults:
    """Kills processes of the server that this process uses and that is not there yet, and fills its disk.

    `kills` counts by target: "runner" and "init" (a container's), "server" (with its worker), "launcher". What the
    rest of the system feels is recorded by what it hits: "container", "server", "launcher", "disk".
    """

    def __init__(self, root: Path, disk: Path | None = None) -> None:
        self.kills: Counter[str] = Counter()
        self._root = root
        self._others = frozenset(descendants())  # with all below them: another test's server
        self._disk = disk
        self._filler = None if disk is None else disk / "filler"
        self._begun: Counter[str] = Counter()
        self._over: Counter[str] = Counter()
        self._freed_at = -math.inf
        self._died_at = -math.inf

    # --- what has been done

    def now(self) -> Counter[str]:
        """To be passed to `met` later."""
        over = self._over.copy()
        if time.monotonic() - self._freed_at < AFTERMATH:
            over["disk"] -= 1
        return over

    def met(self, since: Counter[str], *hit: str) -> bool:
        """Whether one that hits any of these has gone on at any time since that `now`."""
        return any(self._begun[one] > since[one] for one in hit)

    def just_died(self) -> bool:
        """Whether a server was killed so lately that something may have been sent to it without looking."""
        return time.monotonic() - self._died_at < NOTICED

    # --- kills

    def kill(self, target: str) -> bool:
        """Kills one process of that kind, and returns when it is gone, of a launcher also its containers; False where
        there is none just now."""
        hit = "container" if target in ("runner", "init") else target
        with contextlib.ExitStack() as stack:
            process = next((one for one in self._open(target, stack)), None)
            if process is None:
                return False
            containers = list(self._open("init", stack)) if target == "launcher" else []
            self._begun[hit] += 1
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
            for one in (process, *containers):
                gone, _, _ = select.select([one], [], [], DEATH)
                assert gone, f"{target} killed, and not all is gone after {DEATH:g} s"
            self._over[hit] += 1
        if hit == "server":
            self._died_at = time.monotonic()
        self.kills[target] += 1
        return True

    def _open(self, target: str, stack: contextlib.ExitStack) -> Iterator[int]:
        """Descriptors of the processes of that kind, which `stack` closes."""
        for pid in self._find(target):
            with contextlib.suppress(ProcessLookupError):
                process = os.pidfd_open(pid)
                stack.callback(os.close, process)
                yield process

    def _find(self, target: str) -> list[int]:
        """The pids of what is to be killed, among the processes below this one; what has been there longest first."""
        if target == "server":
            from farcall.sdk import client

            current = client._current  # pyright: ignore[reportPrivateUsage] - asking for one would start it
            return [current.server.pid] if current is not None and current.server is not None else []
        found: list[int] = []
        for pid, command in descendants(self._others).items():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            inner = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid")), [])
            if target == "launcher":
                mine = "farcall.launcher --state" in command and str(self._root) in command
                if mine and len(inner) == 1:
                    found.append(pid)
            elif len(inner) > 1 and inner[-1] == {"init": "1", "runner": "2"}[target]:
                found.append(pid)
        # What a launcher forks looks like it; and pids begin anew some time.
        return sorted(found, key=lambda pid: (_started(pid), _parent(pid) in found))

    # --- the disk

    def fill(self, but: int = 0) -> None:
        """Takes all room there is on the disk, but so many bytes; also what becomes free meanwhile."""
        assert self._disk is not None and self._filler is not None
        self._begun["disk"] += 1
        with self._filler.open("ab", buffering=0) as file:
            while os.statvfs(self._disk).f_bavail:
                for size in (2**20, 2**12, 1):
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(bytes(size))
            file.truncate(file.tell() - but)

    def free(self) -> None:
        """Gives back what `fill` took."""
        assert self._filler is not None
        if self._filler.exists():
            self._filler.unlink()
            self._over["disk"] = self._begun["disk"]
            self._freed_at = time.monotonic()


def _stat(pid: int) -> list[str]:
    """What /proc says of a process, from its state on; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> float:
    """When a process began, in ticks of the kernel's clock."""
    found = _stat(pid)
    return float(found[19]) if found else math.inf


def _parent(pid: int) -> int:
    found = _stat(pid)
    return int(found[1]) if found else 0
