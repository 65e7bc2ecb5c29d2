"""What /proc tells of processes: their memory, their age, who descends from whom."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

MB = 1_000_000


class Memory(NamedTuple):
    """Memory of processes, in MB. `private` is pages that only they have, and that no file backs: not those that a fork
    still shares with its parent. `resident` is all that they have mapped and in memory."""

    private: float
    resident: float


def memory(pids: Iterable[int]) -> Memory:
    """The sum over processes. `private` is Private_Dirty and Swap of smaps_rollup, `resident` its Rss."""
    private = resident = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            next(file)
            fields = {name: int(rest.split()[0]) * 1024 for name, rest in (line.split(":") for line in file)}
        private += fields["Private_Dirty"] + fields["Swap"]
        resident += fields["Rss"]
    return Memory(private / MB, resident / MB)


def forget_peak_memory(pid: int) -> None:
    """What `peak_memory` gives counts from now on."""
    with open(f"/proc/{pid}/clear_refs", "w") as file:
        file.write("5")


def peak_memory(pid: int) -> float:
    """The most that a process has had resident, in MB."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 / MB for line in file if line.startswith("VmHWM:"))


def cpu_seconds(pids: Iterable[int]) -> float:
    """The processor time that processes' threads have used, those that run."""
    total = 0
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                total += int(file.read().split()[0])
    return total / 1e9


def in_pid_namespace(namespace: str) -> list[int]:
    """The processes of a pid namespace, given as the link of /proc/self/ns/pid reads in it."""
    found: list[int] = []
    for pid in _all():
        try:
            if os.readlink(f"/proc/{pid}/ns/pid") == namespace:
                found.append(pid)
        except OSError:
            continue  # it has ended, or is another user's
    return found


def descendants(root: int) -> list[int]:
    """All processes below `root`, which is not among them."""
    children: dict[int, list[int]] = {}
    for pid in _all():
        fields = _stat(pid)
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(pid)
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def started_at(pid: int) -> float:
    """When a process was made, on the clock of `time.clock_gettime(CLOCK_BOOTTIME)`; to the kernel's tick of 10 ms."""
    fields = _stat(pid)
    if fields is None:
        raise ProcessLookupError(f"there is no process {pid}")
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def title(pid: int) -> str:
    """The command line of a process as it stands there now; "" for one that has ended."""
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().replace("\0", " ").strip()
    except OSError:
        return ""


def isolation(pid: int) -> dict[str, bool]:
    """What separates a process from this one, by kind."""
    separate = {
        f"{kind} namespace": os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
    }
    with open(f"/proc/{pid}/cgroup") as theirs, open("/proc/self/cgroup") as ours:
        separate["cgroup"] = theirs.read() != ours.read()
    with open(f"/proc/{pid}/status") as file:
        separate["seccomp"] = any(line.split() == ["Seccomp:", "2"] for line in file)
    return separate


def _all() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (the state) on; the second may hold blanks."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None
