"""The volumes that this container has mounted: what has changed there becomes a version, and newer ones come in.

Container code sees its volumes as they were when it started, and what it writes itself. A commit finds by the files'
sizes and times what is different from that, sends it, and asks for the change as a whole. All of it happens with the
container's own rights, through the paths that its code uses, so it works the same however the volume is mounted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import sys
import threading
import time
from collections.abc import Generator
from typing import NamedTuple

from farcall.errors import FarcallError, VolumeError
from farcall.sdk.volume_transfer import Upload, newest, open_regular, read, version
from farcall.wire.volumes import MountedVolume, VolumeEntry

COMMIT_SECONDS = float(os.environ.get("FARCALL_VOLUME_COMMIT_SECONDS", "10"))  # between commits in the background
_LOAD = 20  # a commit in the background may take this fraction of the time
_SETTLED_NS = 50_000_000  # a file whose time is this close to when it was looked at may have changed since unseen
_HASH_BYTES = 2**20
_UNMAPPED = 65534  # whose the kernel shows files to be that belong to an id which this container does not have

_mounts: dict[str, Mount] = {}
_committing: threading.Thread | None = None
_ending = threading.Event()


class _Seen(NamedTuple):
    """A file when it was known to be what the container's version has."""

    size: int
    mtime_ns: int
    ctime_ns: int
    at_ns: int

    def is_still(self, status: os.stat_result) -> bool:
        same = (self.size, self.mtime_ns, self.ctime_ns) == (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return same and status.st_ctime_ns < self.at_ns - _SETTLED_NS


class Mount:
    """One volume in this container. Its methods may be called from any thread."""

    def __init__(self, volume: MountedVolume) -> None:
        self.name = volume.name
        self.path = os.fsencode(volume.path)
        self.read_only = volume.read_only
        self._written_at = os.fsencode(volume.written_at or volume.path)
        self.trouble = ""  # why the last commit that nobody asked for failed
        self._version = volume.version
        self._first = volume.version
        # What the container sees, but for what it has changed since; None until it is asked for.
        self._base: dict[bytes, VolumeEntry] | None = None
        self._seen: dict[bytes, _Seen] = {}
        self._mounted_ns = time.time_ns()
        self._lock = threading.Lock()

    def commit(self) -> None:
        """Makes what this container has changed a version that others see. Raises VolumeError, NotFoundError."""
        if self.read_only:
            raise VolumeError(f"volume {self.name!r} is mounted read-only at {os.fsdecode(self.path)}: nothing changes")
        with self._lock, self._explained("committed"):
            self._commit()

    def reload(self) -> None:
        """Brings in what others have committed. Files that this container has changed and not committed stay.

        Raises VolumeError, naming the file, where one of the volume is open.
        """
        with self._lock, self._explained("reloaded"):
            if (used := self._used()) is not None:
                raise VolumeError(
                    f"volume {self.name!r} cannot be reloaded while {used} is in use in this container: close it first"
                )
            self._reload()

    def renew_lock(self) -> None:
        """In a forked child: whoever held it is not here."""
        self._lock = threading.Lock()

    # --- committing

    def _commit(self) -> None:
        base = self._known()
        found = self._walk()
        upload = Upload()
        statuses: dict[bytes, tuple[os.stat_result, int]] = {}
        entries: list[VolumeEntry] = []
        try:
            for path, status in found.items():
                before = base.get(path)
                if self._is_same(path, status, before):
                    continue
                if stat.S_ISREG(status.st_mode):
                    with contextlib.suppress(FileNotFoundError):
                        looked = time.time_ns()
                        opened = open_regular(self._full(path))
                        if opened is not None:
                            statuses[path] = opened[1], looked
                            upload.add(path, opened[0])
                elif (entry := self._entry(path, status)) is not None:
                    entries.append(entry)
            upload.finish()
            for path, (status, _) in statuses.items():
                added = upload.added[path]
                entries.append(_entry_of(path, status, added.size, added.digest))
            removed = base.keys() - found.keys()
            if not entries and not removed:
                return
            upload.commit(self.name, entries, removed)
        finally:
            upload.close()
        for path in removed:
            del base[path]
            self._seen.pop(path, None)
        for entry in entries:
            base[entry.path] = entry
        for path, (status, looked) in statuses.items():
            self._see(path, status, looked)

    def _is_same(self, path: bytes, status: os.stat_result, before: VolumeEntry | None) -> bool:
        """Whether a file is what the container's version has there."""
        if before is None or before.mode != status.st_mode:
            return False
        owners = ((before.uid, status.st_uid), (before.gid, status.st_gid))
        if any(was != now and now != _UNMAPPED for was, now in owners):
            return False
        if stat.S_ISDIR(status.st_mode):
            return True
        if stat.S_ISLNK(status.st_mode):
            return self._target(path) == before.target
        if (before.size, before.mtime_ns) != (status.st_size, status.st_mtime_ns):
            return False
        seen = self._seen.get(path)
        if seen is None and status.st_ctime_ns < self._mounted_ns - _SETTLED_NS:
            return True
        if seen is not None and seen.is_still(status):
            return True
        looked = time.time_ns()
        if self._digest(path) != before.digest:
            return False
        self._see(path, status, looked)
        return True

    def _see(self, path: bytes, status: os.stat_result, at_ns: int) -> None:
        self._seen[path] = _Seen(status.st_size, status.st_mtime_ns, status.st_ctime_ns, at_ns)

    def _digest(self, path: bytes) -> bytes | None:
        hasher = hashlib.sha256()
        size = 0
        try:
            with open(self._full(path), "rb", buffering=0) as file:
                while chunk := file.read(_HASH_BYTES):
                    hasher.update(chunk)
                    size += len(chunk)
        except OSError:
            return None
        return hasher.digest() if size else b""

    def _entry(self, path: bytes, status: os.stat_result) -> VolumeEntry | None:
        """A directory or a symlink; None for what volumes do not hold, and for what is gone."""
        if stat.S_ISDIR(status.st_mode):
            return _entry_of(path, status)
        target = self._target(path) if stat.S_ISLNK(status.st_mode) else None
        return None if target is None else _entry_of(path, status, target=target)

    def _target(self, path: bytes) -> bytes | None:
        """Where a symlink leads; None where it has vanished."""
        try:
            return os.readlink(self._full(path))
        except OSError:
            return None

    # --- reloading

    def _reload(self) -> None:
        base = self._known()
        now = newest(self.name, self._version)
        if now.version == self._version:
            return
        found = self._walk()
        ours = {path for path, status in found.items() if not self._is_same(path, status, base.get(path))}
        ours |= base.keys() - found.keys()
        wanted = {entry.path: entry for entry in now.entries if entry.path}
        # What is in a directory goes before it.
        for path in sorted(base.keys() - wanted.keys() - ours, reverse=True):
            self._remove(path, found[path])
            del base[path]
        for path, entry in wanted.items():
            if path in ours or base.get(path) == entry:
                continue
            self._bring(entry, found.get(path))
            base[path] = entry  # one by one: what is cut off here must not look like changes of this container's
        self._base, self._version = wanted, now.version

    def _remove(self, path: bytes, status: os.stat_result) -> None:
        self._seen.pop(path, None)
        if stat.S_ISDIR(status.st_mode):
            with contextlib.suppress(OSError):  # something of ours is in it
                os.rmdir(self._own(path))
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._own(path))

    def _bring(self, entry: VolumeEntry, there: os.stat_result | None) -> None:
        """Makes a file, directory or symlink as the newest version has it."""
        full = self._own(entry.path)
        kind = stat.S_IFMT(entry.mode)
        if there is not None and stat.S_IFMT(there.st_mode) != kind:
            self._remove(entry.path, there)
        try:
            os.makedirs(os.path.dirname(full), exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            return  # a file of this container's is in the way, and will be what stays
        if kind == stat.S_IFDIR:
            with contextlib.suppress(FileExistsError):
                os.mkdir(full)
            _give_attributes(full, entry)
            return
        made = os.path.join(os.path.dirname(full), b".farcall-" + secrets.token_hex(6).encode())
        try:
            if kind == stat.S_IFLNK:
                os.symlink(entry.target, made)
            else:
                with open(made, "xb", buffering=0) as file:
                    for chunk in read(self.name, entry):
                        view = memoryview(chunk)
                        while view:
                            view = view[file.write(view) :]
            _give_attributes(made, entry)
            os.rename(made, full)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(made)
            raise
        self._see(entry.path, os.lstat(full), time.time_ns())

    def _used(self) -> str | None:
        """A file of the volume that a process of this container has open, mapped, or as its working directory."""
        for pid in os.listdir("/proc"):
            if not pid.isdigit():
                continue
            with contextlib.suppress(OSError):
                names = [f"/proc/{pid}/cwd", *(f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))]
                for name in names:
                    with contextlib.suppress(OSError):
                        target = os.readlink(os.fsencode(name))
                        if self._holds(target):
                            return os.fsdecode(target)
                with open(f"/proc/{pid}/maps", "rb") as maps:
                    for line in maps:
                        target = line.rstrip(b"\n").split(maxsplit=5)[-1]
                        if self._holds(target):
                            return os.fsdecode(target)
        return None

    def _holds(self, target: bytes) -> bool:
        inside = target == self.path or target.startswith(self.path + b"/")
        return inside and not target.endswith(b" (deleted)")

    # --- what there is

    def _known(self) -> dict[bytes, VolumeEntry]:
        if self._base is None:
            self._base = {entry.path: entry for entry in version(self.name, self._first).entries if entry.path}
        return self._base

    def _walk(self) -> dict[bytes, os.stat_result]:
        """What is there, directories before what is in them."""
        found: dict[bytes, os.stat_result] = {}
        pending = [b""]
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(self._full(folder) if folder else self.path) as entries:
                    for entry in entries:
                        path = os.path.join(folder, entry.name)
                        try:
                            status = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue
                        if stat.S_IFMT(status.st_mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                            continue
                        found[path] = status
                        if stat.S_ISDIR(status.st_mode):
                            pending.append(path)
            except FileNotFoundError:
                continue
        return found

    def _full(self, path: bytes) -> bytes:
        return self.path + b"/" + path

    def _own(self, path: bytes) -> bytes:
        """Where a reload can write, which the container's code may not be able to at the volume's path."""
        return self._written_at + b"/" + path

    @contextlib.contextmanager
    def _explained(self, what: str) -> Generator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FarcallError):
                raise
            raise VolumeError(f"volume {self.name!r} could not be {what}: {error}") from error


def _entry_of(
    path: bytes, status: os.stat_result, size: int = 0, digest: bytes = b"", target: bytes = b""
) -> VolumeEntry:
    return VolumeEntry(path, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, size, digest, target)


def _give_attributes(path: bytes, entry: VolumeEntry) -> None:
    with contextlib.suppress(OSError):  # an id that this container does not have
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
    if not stat.S_ISLNK(entry.mode):
        os.chmod(path, stat.S_IMODE(entry.mode))
    os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)


# --- this container's


def find(name: str, method: str) -> Mount:
    """The volume of that name. Raises VolumeError where it is not mounted here."""
    mount = _mounts.get(name)
    if mount is None:
        raise VolumeError(
            f"Volume.{method}() is for containers that have the volume mounted: volume {name!r} is not mounted here. "
            "Name it in the function's volumes="
        )
    return mount


def begin(volumes: tuple[MountedVolume, ...]) -> None:
    """In a runner, before user code is loaded: knows the container's volumes, and commits in the background."""
    global _committing
    for volume in volumes:
        _mounts[volume.name] = Mount(volume)
    if any(not mount.read_only for mount in _mounts.values()):
        _committing = threading.Thread(target=_commit_now_and_then, name="farcall-volumes", daemon=True)
        _committing.start()
        os.register_at_fork(after_in_child=_after_fork_in_child)


def end() -> None:
    """In a runner, once user code has ended: commits for the last time."""
    _ending.set()
    _commit_all("as the container ends")


def _commit_now_and_then() -> None:
    pause = COMMIT_SECONDS
    while not _ending.wait(pause):
        begun = time.monotonic()
        _commit_all("in the background")
        pause = max(COMMIT_SECONDS, _LOAD * (time.monotonic() - begun))


def _commit_all(when: str) -> None:
    for mount in _mounts.values():
        if mount.read_only:
            continue
        try:
            mount.commit()
        except (FarcallError, OSError) as error:
            if mount.trouble != str(error):  # said once, not every time
                mount.trouble = str(error)
                print(f"farcall: volume {mount.name!r} is not committed {when}: {error}", file=sys.stderr, flush=True)
        else:
            mount.trouble = ""


def _after_fork_in_child() -> None:
    for mount in _mounts.values():
        mount.renew_lock()
