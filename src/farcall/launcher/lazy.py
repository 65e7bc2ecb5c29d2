"""Mounts whose files arrive when they are opened: one for each store, and the process that serves it.

The launcher keeps the opening of /dev/fuse that is mounted. So when the server dies nothing ends: who waits for a file
goes on waiting, and the next server is asked again what the last one has not answered (Linux 6.9). A server ends with
its launcher, and the mount, by then a dead one, is swept up by the next launcher.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from farcall.launcher import syscalls
from farcall.launcher.loop import Loop
from farcall.spec.container import ContainerSpec

_MOST_DEATHS = 5  # of a server within `_WITHIN` seconds, at which nobody waits for it any more
_WITHIN = 30.0
_LAST_WORDS = 1.0  # seconds that a server has to write profiles down when it is told to end
_READ_ONLY = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV


@dataclass
class _Mount:
    store: Path
    path: str
    device: int
    openings: int  # a memory file that servers hand on
    orders: int = -1  # a pipe to the server
    server: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    deaths: list[float] = field(default_factory=list[float])


class LazyMounts:
    """All of one launcher."""

    def __init__(self, loop: Loop, state: Path) -> None:
        self._loop = loop
        self._directory = state / "lazy"
        self._mounts: dict[Path, _Mount] = {}

    def sweep(self) -> None:
        """Unmount what a former launcher has left."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._directory):
                self._remove(f"{self._directory}/{name}")

    def prepare(self, spec: ContainerSpec) -> dict[str, str]:
        """What this container's lazy trees need: the mounts of their stores, by the stores' folders of objects.

        Raises OSError where there can be none.
        """
        trees = [tree for tree in (spec.root, *spec.trees) if tree is not None and tree.is_lazy]
        return {tree.objects: self.begin_start(Path(tree.objects).parent, Path(tree.path).name) for tree in trees}

    def begin_start(self, store: Path, tree_id: str) -> str:
        """A container is about to start from this tree of a store: says so to its server, and where it is mounted."""
        mount = self._mounts.get(store) or self._mount(store)
        with contextlib.suppress(OSError):  # a pipe that is full, or a server that died just now: it is only a hint
            os.write(mount.orders, f"{tree_id}\n".encode())
        return mount.path

    def close(self) -> None:
        """Unmount everything, and end the servers."""
        for mount in list(self._mounts.values()):
            self._give_up(mount)
        with contextlib.suppress(OSError):
            os.rmdir(self._directory)

    def _mount(self, store: Path) -> _Mount:
        from farcall.mounts.lazy import fuse  # which a launcher in a container does not have, nor need

        name = hashlib.sha256(os.fsencode(store)).hexdigest()[:16]
        path = f"{self._directory}/{name}"
        os.makedirs(path, 0o700, exist_ok=True)
        device = os.open(fuse.DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            syscalls.mount("farcall", path, "fuse", _READ_ONLY, fuse.mount_options(device))
        except OSError:
            os.close(device)
            raise
        try:
            _read_ahead(path, fuse.MAX_READ)
            mount = _Mount(store, path, device, os.memfd_create("farcall-openings", os.MFD_CLOEXEC))
        except OSError:
            self._remove(path)
            os.close(device)
            raise
        self._mounts[store] = mount
        self._start_server(mount)
        return mount

    def _start_server(self, mount: _Mount) -> None:
        """Raises OSError where there can be none; then it is unmounted: who opens a file would wait for ever."""
        try:
            theirs, mount.orders = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            descriptors = (mount.device, mount.openings, theirs)
            command = [sys.executable, "-m", "farcall.mounts.lazy", str(mount.store), *map(str, descriptors)]
            try:
                mount.server = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=descriptors)
            finally:
                os.close(theirs)
            mount.pidfd = os.pidfd_open(mount.server.pid)
        except OSError:
            self._give_up(mount)
            raise
        self._loop.add(mount.pidfd, lambda: self._died(mount))

    def _died(self, mount: _Mount) -> None:
        assert mount.server is not None
        self._forget_server(mount)
        status = mount.server.wait()
        now = time.monotonic()
        mount.deaths = [*(death for death in mount.deaths if now - death < _WITHIN), now]
        if len(mount.deaths) >= _MOST_DEATHS:
            _log(
                f"what serves missing files of {mount.store} died {_MOST_DEATHS} times (status {status}): who opens "
                "one gets an error. The next container to start tries again"
            )
            self._give_up(mount)
            return
        _log(f"what serves missing files of {mount.store} died (status {status})")
        try:
            self._start_server(mount)
        except OSError as error:
            _log(
                f"missing files of {mount.store} cannot be served ({error.strerror}): who opens one gets an error. The "
                "next container to start tries again"
            )

    def _forget_server(self, mount: _Mount) -> None:
        if mount.pidfd >= 0:
            self._loop.remove(mount.pidfd)
            os.close(mount.pidfd)
            mount.pidfd = -1
        if mount.orders >= 0:
            os.close(mount.orders)
            mount.orders = -1

    def _give_up(self, mount: _Mount) -> None:
        """Unmount; whoever waits, or has a file open, gets an error."""
        self._forget_server(mount)
        self._mounts.pop(mount.store, None)
        self._remove(mount.path)
        os.close(mount.device)
        os.close(mount.openings)
        if mount.server is not None:
            try:
                mount.server.wait(_LAST_WORDS)
            except subprocess.TimeoutExpired:
                mount.server.kill()
                mount.server.wait()

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError):
            syscalls.umount(path)
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _log(line: str) -> None:
    print(f"farcall: {line}", file=sys.stderr, flush=True)


def _read_ahead(path: str, size: int) -> None:
    """Let the kernel ask for `size` bytes at once where it would ask for 128 KiB. Nobody serves the mount yet: it must
    not be looked into."""
    with open("/proc/self/mountinfo") as file:
        device = next((fields[2] for line in file if (fields := line.split())[4] == path), None)
    with contextlib.suppress(OSError):
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(size >> 10))
