"""What a launcher would leave behind if it were killed now, on disk, one file per container.

A new launcher sweeps: kills what still runs (identity is pid and start time, within one boot), removes cgroups and
writable areas. Written before a thing is made, removed after it is gone. Nothing is synced: after a power cut there are
no processes and no cgroups to sweep, and areas without a journal entry are swept too.
"""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import msgspec

from farcall.launcher import cgroups, process_runtime
from farcall.settings.room import is_no_room

_SWEEP_PATIENCE = 10.0  # seconds for killed processes to be gone


class Process(msgspec.Struct, frozen=True):
    """A process of this boot. `started` is field 22 of /proc/PID/stat, clock ticks since boot."""

    pid: int
    started: int


class Entry(msgspec.Struct):
    """What one container has on this machine."""

    container_id: str
    boot_id: str
    area: str
    cgroups: list[str]
    processes: list[Process] = []


def process_of(pid: int) -> Process | None:
    """Identify a live process; None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return Process(pid, int(fields[19]))


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Journal:
    """The journal of one state directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._boot_id = boot_id()
        self._unwritten: dict[str, Entry] = {}  # for want of room
        directory.mkdir(mode=0o700, exist_ok=True)

    def write(self, container_id: str, area: str, cgroup_paths: list[str], pids: list[int]) -> None:
        """Record a container, in place of what was recorded of it before. Where the disk is full that has to wait for
        `catch_up`; meanwhile a sweep finds it by its cgroup, where there are any."""
        processes = [process for process in map(process_of, pids) if process is not None]
        self._unwritten[container_id] = Entry(container_id, self._boot_id, area, cgroup_paths, processes)
        self.catch_up()

    def catch_up(self) -> None:
        """Write what there was no room for."""
        for container_id, entry in list(self._unwritten.items()):
            path = self._path(container_id)
            new = path.with_suffix(".new")
            try:
                new.write_bytes(msgspec.json.encode(entry))
            except OSError as error:
                new.unlink(missing_ok=True)
                if is_no_room(error):
                    return
                raise
            new.rename(path)
            del self._unwritten[container_id]

    def remove(self, container_id: str) -> None:
        """Forget a container of which nothing is left."""
        self._unwritten.pop(container_id, None)
        path = self._path(container_id)
        path.unlink(missing_ok=True)
        path.with_suffix(".new").unlink(missing_ok=True)  # of a launcher that was killed just then

    def entries(self) -> list[Entry]:
        """All containers recorded. An unreadable file (a power cut) is dropped."""
        found: list[Entry] = []
        for path in sorted(self._directory.iterdir()):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Entry))
            except (msgspec.DecodeError, OSError):
                path.unlink(missing_ok=True)
        return found

    def sweep(self, cgroup_paths: list[str], directories: list[Path]) -> int:
        """Remove everything that a former launcher left: processes, cgroups (also those of `cgroup_paths` that no entry
        names), and all that is in `directories`. Returns how many containers had entries."""
        entries = self.entries()
        current = [entry for entry in entries if entry.boot_id == self._boot_id]
        processes = {process.pid: process.started for entry in current for process in entry.processes}
        paths = sorted({*cgroup_paths, *(path for entry in current for path in entry.cgroups)})
        _kill(processes, paths)
        deadline = time.monotonic() + _SWEEP_PATIENCE
        while not cgroups.remove(paths) and time.monotonic() < deadline:
            time.sleep(0.01)  # the kernel gives no event for a v1 cgroup becoming empty
            _kill({}, paths)
        for entry in entries:
            process_runtime.kill_outliving(entry.container_id)
            self.remove(entry.container_id)
        for directory in directories:
            for path in directory.iterdir() if directory.is_dir() else ():
                shutil.rmtree(path, ignore_errors=True)
        return len(entries)

    def _path(self, container_id: str) -> Path:
        return self._directory / f"{container_id}.json"


def _kill(processes: dict[int, int], cgroup_paths: list[str]) -> None:
    pids = dict(processes)
    for path in cgroup_paths:
        for pid in cgroups.members(path):
            process = process_of(pid)
            if process is not None:
                pids.setdefault(pid, process.started)
    for pid, started in pids.items():
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                # Compared after the pidfd is open: the pid cannot be reused under it.
                if process_of(pid) == Process(pid, started):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
