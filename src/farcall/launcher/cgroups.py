"""One cgroup per container, in whichever hierarchies this machine has and lets us write: v1, v2, both or none.

All of a launcher's containers live under one parent directory per hierarchy, made inside the launcher's own cgroup (or
the nearest one above it that can hold them), so that limits already set on the launcher go on to hold.
"""

import contextlib
import os
from pathlib import Path
from typing import Literal, NamedTuple

from farcall.spec.container import Limits

Controller = Literal["cpu", "memory", "pids"]
CONTROLLERS: tuple[Controller, ...] = ("cpu", "memory", "pids")

_MIB = 1024 * 1024
_CPU_PERIOD = 100_000  # microseconds, the kernel's default


class Usage(NamedTuple):
    """What a cgroup's memory controller recorded. `peak` is bytes, 0 where the kernel does not say."""

    peak: int
    oom_kills: int


class CgroupError(Exception):
    """A cgroup that should be usable is not; `str()` says which file."""


class Cgroup:
    """The cgroup of one container: one directory on v2, one per controller on v1."""

    def __init__(self, directories: dict[Path, tuple[int, tuple[Controller, ...]]]) -> None:
        self._directories = directories  # directory: (version, controllers)

    @property
    def paths(self) -> list[str]:
        """All its directories, for the journal."""
        return [str(directory) for directory in self._directories]

    @property
    def v1(self) -> list[str]:
        """Its directories in v1 hierarchies."""
        return [str(directory) for directory, (version, _) in self._directories.items() if version == 1]

    @property
    def v2(self) -> str | None:
        """Its directory in the v2 hierarchy, if it has one."""
        return next((str(directory) for directory, (version, _) in self._directories.items() if version == 2), None)

    def create(self, limits: Limits) -> None:
        """Make it, with limits. Raises CgroupError."""
        for directory in self._directories:
            try:
                # With its parent, the launcher's own: whoever tidies up this machine's empty cgroups may have taken it.
                directory.mkdir(exist_ok=True, parents=True)
            except OSError as error:
                raise CgroupError(f"cannot create {directory}: {os.strerror(error.errno or 0)}") from error
        for directory, (version, controllers) in self._directories.items():
            for controller in controllers:
                for file, value in _settings(version, controller, limits):
                    try:
                        _write(directory / file, value)
                    except FileNotFoundError:
                        if file not in _OPTIONAL:
                            raise CgroupError(f"{directory / file} does not exist") from None
                    except OSError as error:
                        raise CgroupError(f"{directory / file}: {os.strerror(error.errno or 0)}") from error

    def usage(self) -> Usage:
        """Peak memory and the number of processes killed at the limit, so far."""
        for directory, (version, controllers) in self._directories.items():
            if "memory" in controllers:
                peak = _read_number(directory / ("memory.max_usage_in_bytes" if version == 1 else "memory.peak"))
                events = directory / ("memory.oom_control" if version == 1 else "memory.events")
                return Usage(peak, _read_field(events, "oom_kill"))
        return Usage(0, 0)

    def measure(self) -> tuple[float, int, int]:
        """Processor seconds so far, bytes of memory without files that are only cached, and processes."""
        memory = 0
        seconds: float | None = None
        for directory, (version, controllers) in self._directories.items():
            if "memory" in controllers:
                used = _read_number(directory / ("memory.usage_in_bytes" if version == 1 else "memory.current"))
                cached = _read_field(
                    directory / "memory.stat", "total_inactive_file" if version == 1 else "inactive_file"
                )
                memory = max(0, used - cached)
            if version == 2:
                seconds = _read_field(directory / "cpu.stat", "usage_usec") / 1e6
            elif (accounted := directory / "cpuacct.usage").exists():
                seconds = _read_number(accounted) / 1e9
        pids = members(self.paths[0])
        return (sum(map(_cpu_seconds, pids)) if seconds is None else seconds), memory, len(pids)

    def remove(self) -> bool:
        """Remove the directories; False when the kernel still counts a process in one: it must be tried again."""
        return remove(self.paths)


class Cgroups:
    """Makes cgroups. `missing` are the controllers that no writable hierarchy offers."""

    def __init__(self, name: str, record: Path | None = None) -> None:
        """`name` tells this launcher's parent directories from others'. `record` is a file that keeps where they are:
        a launcher started from another session has its own elsewhere, and still finds a former one's."""
        self._name = name
        self._former = [Path(line) for line in _read_text(record).splitlines()] if record else []
        self._parents: dict[Path, tuple[int, tuple[Controller, ...]]] = {}
        for parent, version, controllers in _find_parents(name):
            self._parents[parent] = (version, controllers)
        self._former = [parent for parent in self._former if parent.name == name and parent not in self._parents]
        if record:
            record.write_text("".join(f"{parent}\n" for parent in [*self._parents, *self._former]))
        found = {c for _, controllers in self._parents.values() for c in controllers}
        self.missing: tuple[Controller, ...] = tuple(c for c in CONTROLLERS if c not in found)

    def of(self, container_id: str) -> Cgroup | None:
        """The cgroup of a container, not made yet; None where no hierarchy can be written."""
        directories = {parent / container_id: kind for parent, kind in self._parents.items()}
        return Cgroup(directories) if directories else None

    def leftovers(self) -> list[str]:
        """Directories of containers that exist. Before this launcher has made any, those are a former one's."""
        found: list[str] = []
        for parent in [*self._parents, *self._former]:
            with contextlib.suppress(OSError), os.scandir(parent) as entries:
                found += [entry.path for entry in entries if entry.is_dir()]
        return found

    def close(self) -> None:
        """Remove the parents, as far as they are empty."""
        remove([str(parent) for parent in [*self._parents, *self._former]])


def remove(paths: list[str]) -> bool:
    """Remove cgroup directories; absent ones count as removed."""
    gone = True
    for path in paths:
        try:
            os.rmdir(path)
        except FileNotFoundError:
            pass
        except OSError:
            gone = False
    return gone


def members(path: str) -> list[int]:
    """The pids in a cgroup; empty when it is gone."""
    try:
        with open(os.path.join(path, "cgroup.procs")) as file:
            return [int(line) for line in file]
    except OSError:
        return []


def _cpu_seconds(pid: int) -> float:
    """What a process has used, and its children that have ended; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


_OPTIONAL = frozenset({"memory.memsw.limit_in_bytes", "memory.swap.max", "memory.oom.group"})


def _settings(version: int, controller: Controller, limits: Limits) -> list[tuple[str, str]]:
    if controller == "cpu":
        # 1024 shares are one core; v2's weight by the kernel documentation's conversion from shares.
        shares = min(max(int(limits.cpu_request * 1024), 2), 262144)
        quota = int(limits.cpu_limit * _CPU_PERIOD) if limits.cpu_limit else None
        if version == 1:
            return [("cpu.shares", str(shares))] + ([("cpu.cfs_quota_us", str(quota))] if quota else [])
        weight = 1 + (shares - 2) * 9999 // 262142
        return [("cpu.weight", str(weight))] + ([("cpu.max", f"{quota} {_CPU_PERIOD}")] if quota else [])
    if controller == "memory":
        if limits.memory_limit is None:
            return []
        limit = str(limits.memory_limit * _MIB)
        if version == 1:
            return [("memory.limit_in_bytes", limit), ("memory.memsw.limit_in_bytes", limit)]
        return [("memory.max", limit), ("memory.swap.max", "0")]
    return [("pids.max", str(limits.pids))]


def _find_parents(name: str) -> list[tuple[Path, int, tuple[Controller, ...]]]:
    mounts = _cgroup_mounts()
    parents: list[tuple[Path, int, tuple[Controller, ...]]] = []
    unified: str | None = None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, listed, own = line.split(":", 2)
        if not listed:
            unified = own
            continue
        controllers: tuple[Controller, ...] = tuple(c for c in CONTROLLERS if c in listed.split(","))
        mount = next((m for m, held in mounts.items() if controllers and controllers[0] in held), None)
        if mount is not None:
            parent = _make_v1_parent(mount / own.lstrip("/"), name)
            if parent is not None:
                parents.append((parent, 1, controllers))
    taken = {c for _, _, controllers in parents for c in controllers}
    mount = next((m for m, held in mounts.items() if "cgroup2" in held), None)
    if unified is not None and mount is not None:
        parent, handed = _make_v2_parent(mount, mount / unified.lstrip("/"), name)
        free: tuple[Controller, ...] = tuple(c for c in handed if c not in taken)
        if parent is not None and free:
            parents.append((parent, 2, free))
        elif parent is not None:
            remove([str(parent)])
    return parents


def _cgroup_mounts() -> dict[Path, set[str]]:
    """Mount points of cgroup hierarchies and what each holds: v1 controllers, or "cgroup2"."""
    mounts: dict[Path, set[str]] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        filesystem, _, options = after.split(" ", 2)
        if filesystem in ("cgroup", "cgroup2"):
            held = {"cgroup2"} if filesystem == "cgroup2" else set(options.split(","))
            mounts[Path(before.split()[4])] = held
    return mounts


def _make_v1_parent(own: Path, name: str) -> Path | None:
    parent = own / name
    try:
        parent.mkdir(exist_ok=True)
        # A read-only or foreign hierarchy may allow the directory and nothing in it.
        return parent if os.access(parent / "cgroup.procs", os.W_OK) else None
    except OSError:
        return None


def _make_v2_parent(mount: Path, own: Path, name: str) -> tuple[Path | None, tuple[Controller, ...]]:
    # Controllers can only be handed down by a cgroup that has no processes itself (or the real root): climb to the
    # nearest one that hands them down already or can be made to.
    at = own
    while True:
        offered = set(_read_text(at / "cgroup.controllers").split())
        wanted: tuple[Controller, ...] = tuple(c for c in CONTROLLERS if c in offered)
        if wanted and os.access(at / "cgroup.procs", os.W_OK):
            if not set(wanted) <= set(_read_text(at / "cgroup.subtree_control").split()):
                with contextlib.suppress(OSError):
                    _write(at / "cgroup.subtree_control", " ".join(f"+{c}" for c in wanted))
            enabled = _read_text(at / "cgroup.subtree_control").split()
            handed: tuple[Controller, ...] = tuple(c for c in wanted if c in enabled)
            if handed:
                with contextlib.suppress(OSError):
                    parent = at / name
                    parent.mkdir(exist_ok=True)
                    _write(parent / "cgroup.subtree_control", " ".join(f"+{c}" for c in handed))
                    return parent, handed
        if at == mount:
            return None, ()
        at = at.parent


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _read_number(path: Path) -> int:
    text = _read_text(path).strip()
    return int(text) if text.isdigit() else 0


def _read_field(path: Path, name: str) -> int:
    for line in _read_text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
