"""The launcher's writable areas: a few made ahead, all measured, and deleted in the background, by the janitor."""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

from farcall.launcher import janitor
from farcall.launcher.area import Owner
from farcall.launcher.loop import Loop

_END_SECONDS = 1.0  # how long the launcher's own end waits for the janitor's
POOL_SIZE = 8  # areas kept ready once there was a first container

# The binds (source, target) whose mount points an area has; None for the layer that lies over an image.
Binds = tuple[tuple[str, str], ...] | None


class Areas:
    """All areas of one launcher, and the janitor process that looks after them."""

    def __init__(self, loop: Loop, state: Path, lock: int, on_exceeded: Callable[[str], None]) -> None:
        """`lock` is the launcher's. `on_exceeded` is called with the id of a container whose area outgrew its limit."""
        self._loop = loop
        self._lock = lock
        self.directory = state / "containers"
        self._trash = state / "trash"
        self._on_exceeded = on_exceeded
        self._count = 0
        self._ready: list[tuple[Binds, str]] = []
        self._ordered: dict[str, Binds] = {}
        self._watched: dict[str, janitor.Watch] = {}
        self.directory.mkdir(mode=0o711, exist_ok=True)
        self._trash.mkdir(mode=0o700, exist_ok=True)
        self._start()

    @staticmethod
    def directories(state: Path) -> list[Path]:
        """What a launcher sweeps: everything in these is a former one's."""
        return [state / "containers", state / "trash"]

    def take(self, binds: Binds) -> tuple[str, bool]:
        """The directory of a new container, and whether it is made already. Areas made for other binds are never given:
        their mount points would tell of other containers. Raises OSError."""
        for at, (made_for, path) in enumerate(self._ready):
            if made_for == binds:
                del self._ready[at]
                return path, True
        path = self._next()
        os.mkdir(path, 0o711)
        if binds is not None:
            os.mkdir(path + "/root", 0o755)
        return path, False

    def restock(self, binds: Binds, owner: Owner) -> None:
        """Order areas for the next containers with these binds, so that there are enough. The pool goes to whoever
        started last: areas made for others leave it when there is no room."""
        while len(self._ready) + len(self._ordered) < POOL_SIZE or self._drop_other(binds):
            path = self._next()
            self._ordered[path] = binds
            if not self._tell(janitor.Make(path, *owner, None if binds is None else list(binds))):
                del self._ordered[path]
                return

    def watch(self, container_id: str, path: str, limit: int) -> None:
        """Tell when the area holds more than `limit` bytes."""
        self._watched[container_id] = janitor.Watch(container_id, path, limit)
        self._tell(self._watched[container_id])

    def delete(self, container_id: str, path: str) -> None:
        """Take the area out of sight at once; its content is deleted in the background."""
        self._watched.pop(container_id, None)
        target = str(self._trash / os.path.basename(path))
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, target)
        self._tell(janitor.Delete(container_id, target))

    def close(self) -> None:
        """Delete what is left and end the janitor, which may stay a while when there is much to delete."""
        for _, path in self._ready:
            self.delete("", path)
        for path in self._ordered:
            self._tell(janitor.Delete("", path))
        self._ready.clear()
        self._loop.remove(self._channel.fileno())
        self._channel.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            pidfd = os.pidfd_open(self._pid)
            ended, _, _ = select.select([pidfd], [], [], _END_SECONDS)
            if ended:
                os.waitpid(self._pid, 0)
            os.close(pidfd)

    def _drop_other(self, binds: Binds) -> bool:
        other = next((entry for entry in self._ready if entry[0] != binds), None)
        if other is None:
            return False
        self._ready.remove(other)
        self.delete("", other[1])
        return True

    def _next(self) -> str:
        self._count += 1
        return str(self.directory / f"{self._count}.{time.monotonic_ns():x}")

    def _start(self) -> None:
        self._pid, self._channel = janitor.start(self._lock)
        self._loop.add(self._channel.fileno(), self._hear)

    def _restart(self) -> None:
        self._loop.remove(self._channel.fileno())
        self._channel.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        self._ordered.clear()
        self._start()
        for watch in self._watched.values():
            self._tell(watch)

    def _tell(self, order: janitor.Order) -> bool:
        """Send an order; False when it does not fit into a message, which only a Make with many binds may not."""
        data = janitor.encode(order)
        if len(data) > janitor.MAX_MESSAGE:
            return False
        try:
            self._channel.send(data)
        except BlockingIOError:
            # Hundreds of orders wait: it cannot keep up, so wait for it rather than lose one.
            self._channel.setblocking(True)
            with contextlib.suppress(OSError):
                self._channel.send(data)
            self._channel.setblocking(False)
        except OSError:
            pass  # it has died: the end of file that follows starts another
        return True

    def _hear(self) -> None:
        try:
            data = self._channel.recv(janitor.MAX_MESSAGE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._restart()
            return
        match janitor.decode_news(data):
            case janitor.Made(path=path, failed=failed):
                binds = self._ordered.pop(path, None)
                if binds is not None and not failed:
                    self._ready.append((binds, path))
            case janitor.Exceeded(container_id=container_id):
                if self._watched.pop(container_id, None) is not None:
                    self._on_exceeded(container_id)
