"""Blobs from a registry into files: verified while they arrive, and gone on with where they broke off.

A download lies in a folder under the blob's digest from its first byte on, locked by who is at it. What is left of one
that failed is what the next one begins with, in whichever process.
"""

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import httpx

from farcall.builder.oci.attempts import Attempts, StoppedError, TransientError
from farcall.builder.oci.manifest import Descriptor
from farcall.builder.oci.registry import Repository
from farcall.builder.oci.transport import chunks
from farcall.content.disk import disk_error, write_all
from farcall.errors import CorruptedError

KEEP = 7 * 86400.0  # seconds that what is left of a failed download waits for the next attempt
_POLL = 0.2  # seconds between two looks whether another process is done with a download
_READ_BYTES = 1024 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


def download(
    repository: Repository,
    blob: Descriptor,
    folder: Path,
    progress: Callable[[int], None],
    is_wanted: Callable[[], bool] = lambda: True,
) -> FileIO | None:
    """The blob as an open file, at its beginning, verified. Closing it lets others in; `discard` removes it as well.

    `progress` gets how many bytes are there, now and then. While another process downloads the same blob, this waits
    for it; None where then, or at first, `is_wanted` says no. Raises what `Repository` does and what `disk_error` says.
    """
    path = folder / blob.digest.replace(":", "-")
    while is_wanted():
        file = _locked(repository, path)
        if file is None:
            continue  # another process has discarded it meanwhile
        try:
            _Transfer(repository, blob, file, progress).run()
            file.seek(0)
        except OSError as error:
            file.close()
            raise disk_error(error, "writing", path) from error
        except BaseException:
            file.close()
            raise
        return file
    return None


def discard(file: FileIO) -> None:
    """Removes a download and closes it."""
    os.unlink(file.name)
    file.close()


def sweep(folder: Path) -> None:
    """Removes what failed downloads have left and nobody came back for."""
    for path in folder.iterdir():
        try:
            if time.time() - path.stat().st_mtime > KEEP:
                path.unlink()
        except FileNotFoundError:
            continue


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
            if self._done > self._furthest:
                self._furthest = self._done
                attempts.progressed()
                self._progress(self._done)

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


def _locked(repository: Repository, path: Path) -> FileIO | None:
    """The file at `path`, ours alone; None where it went away while another process was at it. StoppedError."""
    stop, timing = repository.transport.stop, repository.transport.timing
    file = None
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        file = FileIO(path, "r+", opener=lambda name, flags: os.open(name, flags | os.O_CREAT | os.O_CLOEXEC, 0o600))
        while not _try_lock(file):
            timing.sleep(stop, _POLL)
            if stop.is_set():
                raise StoppedError
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()
    except BaseException as error:
        if file is not None:
            file.close()
        if isinstance(error, OSError):
            raise disk_error(error, "making", path) from error
        raise
    return None


def _try_lock(file: FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
