"""Blobs from a registry into files: verified while they arrive, and gone on with where they broke off.

A download lies in a folder under the blob's digest from its first byte on. What is left of one that failed is what the
next one begins with, in whichever process.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path

import httpx

from farcall.builder.oci.manifest import Descriptor
from farcall.builder.oci.registry import Repository
from farcall.builder.oci.transport import chunks
from farcall.content.attempts import Attempts, StoppedError, TransientError
from farcall.content.disk import disk_error, write_all
from farcall.errors import CorruptedError, FarcallError

_POLL = 0.2  # seconds between two looks whether another process is done with a download
_PROGRESS_BYTES = 64 * 1024  # that an attempt must get further to count as one; else a trickle would have no end
_READ_BYTES = 1024 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


def download(repository: Repository, blob: Descriptor, folder: Path, progress: Callable[[int], None]) -> FileIO:
    """The blob as an open file, at its beginning, verified. It stays in `folder` until somebody calls `discard`.

    While another process downloads the same blob, this waits for it. `progress` gets how many bytes are there, now and
    then. Raises what `Repository` does, what `disk_error` says, and StoppedError.
    """
    path = folder / blob.digest.replace(":", "-")
    file, is_ours = _locked(repository, path)
    try:
        if is_ours:
            _Transfer(repository, blob, file, progress).run()
            fcntl.flock(file, fcntl.LOCK_SH)
        file.seek(0)
    except BaseException as error:
        file.close()
        if isinstance(error, OSError) and not isinstance(error, FarcallError):
            raise disk_error(error, "writing", path) from error
        raise
    progress(blob.size)
    return file


def discard(file: FileIO) -> None:
    """Removes a download and closes it. Others who have it open keep what they have."""
    with suppress(FileNotFoundError):
        os.unlink(file.name)
    file.close()


class _Transfer:
    """One blob on its way into a file that is locked."""

    def __init__(self, repository: Repository, blob: Descriptor, file: FileIO, progress: Callable[[int], None]) -> None:
        self._repository = repository
        self._blob = blob
        self._file = file
        self._progress = progress
        self._algorithm, _, self._promised = blob.digest.partition(":")
        self._hasher = hashlib.new(self._algorithm)
        self._done = 0  # bytes in the file, and in the hasher
        self._furthest = 0

    def run(self) -> None:
        """Returns when the file is the blob."""
        self._take_up()
        transport = self._repository.transport
        attempts = transport.attempts()
        while True:
            try:
                if self._done < self._blob.size:
                    with self._repository.blob(self._blob.digest, self._done) as response:
                        self._receive(response, attempts)
                self._verify()
                return
            except TransientError as failure:
                attempts.failed(failure)

    def _take_up(self) -> None:
        """Goes on with what is there already."""
        while data := self._file.read(_READ_BYTES):
            self._hasher.update(data)
            self._done += len(data)
        if self._done > self._blob.size:
            self._restart()
        self._furthest = self._done
        self._progress(self._done)

    def _receive(self, response: httpx.Response, attempts: Attempts) -> None:
        transport = self._repository.transport
        if self._done and not self._continues(response):
            self._restart()
            if response.status_code == 416:
                raise self._wrong("it has no place where the download broke off")
        for chunk in chunks(response, transport.timing, transport.stop):
            if self._done + len(chunk) > self._blob.size:
                self._restart()
                raise self._wrong("it sends more bytes than the image says")
            write_all(self._file.fileno(), chunk)
            self._hasher.update(chunk)
            self._done += len(chunk)
            self._progress(self._done)
            if self._done >= self._furthest + _PROGRESS_BYTES:
                self._furthest = self._done
                attempts.progressed()

    def _continues(self, response: httpx.Response) -> bool:
        """Whether an answer is what follows what is there."""
        matched = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        return response.status_code == 206 and matched is not None and int(matched[1]) == self._done

    def _verify(self) -> None:
        if self._done < self._blob.size:
            raise self._wrong(f"it ends after {self._done:,} of {self._blob.size:,} bytes")
        found = self._hasher.hexdigest()
        if found != self._promised:
            self._restart()
            raise self._wrong(f"its {self._blob.size:,} bytes are {self._algorithm}:{found}")

    def _wrong(self, why: str) -> TransientError:
        return TransientError(
            CorruptedError,
            f"{self._repository.name}: what the registry sends is not {self._blob.digest}: {why}",
            "The image is damaged in the registry, or something between changes what it sends: push it again",
            cost=2,
        )

    def _restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hasher = hashlib.new(self._algorithm)
        self._done = 0


def _locked(repository: Repository, path: Path) -> tuple[FileIO, bool]:
    """The file at `path`, and whether it is ours alone, to be written; else it is whole and verified.

    Who writes holds the lock alone, who reads shares it: so nobody waits for anything but a transfer under way.
    """
    stop, timing = repository.transport.stop, repository.transport.timing
    while not stop.is_set():
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            file = FileIO(path, "r+", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o600))
        except OSError as error:
            raise disk_error(error, "making", path) from error
        if _try_lock(file, fcntl.LOCK_EX):
            if os.fstat(file.fileno()).st_nlink:
                return file, True
        elif _try_lock(file, fcntl.LOCK_SH):
            return file, False
        else:
            timing.sleep(stop, _POLL)
        file.close()  # somebody writes it, or has discarded it between our opening and our lock
    raise StoppedError


def _try_lock(file: FileIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
