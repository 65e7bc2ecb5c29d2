"""Streams read in pieces, and streams that another thread reads ahead."""

import threading
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from farcall.content.lease import Readable

CHUNK_BYTES = 256 * 1024
AHEAD_CHUNKS = 16


class Pieces:
    """An iterator of bytes as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._pending = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes; fewer only at the end of the stream."""
        if len(self._pending) >= size:
            data, self._pending = self._pending[:size], self._pending[size:]
            return bytes(data)
        parts = [bytes(self._pending)]
        missing = size - len(self._pending)
        self._pending = memoryview(b"")
        while missing > 0:
            piece = next(self._pieces, None)
            if piece is None:
                break
            parts.append(piece[:missing])
            self._pending = memoryview(piece)[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)

    def drain(self) -> None:
        """Read to the end, for whoever hashes the stream below, and check what is left."""
        self._pending = memoryview(b"")
        for _ in self._pieces:
            pass


class ReadAhead(Pieces):
    """A stream that a thread of its own reads, up to 4 MiB ahead: so decompressing and hashing what is read goes on
    while what was read is worked with.

    A context manager: at its end nobody reads the stream below any more. What that raises is raised by `read`.
    """

    def __init__(self, stream: Readable) -> None:
        super().__init__(self._take())
        self._stream = stream
        self._chunks: deque[bytes | BaseException] = deque()
        self._changed = threading.Condition()
        self._is_left = False
        self._thread = threading.Thread(target=self._read_ahead, name="farcall-read-ahead", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_left = True
            self._changed.notify_all()
        self._thread.join()

    def _read_ahead(self) -> None:
        chunk: bytes | BaseException = b"-"
        while chunk and not isinstance(chunk, BaseException):
            try:
                chunk = self._stream.read(CHUNK_BYTES)
            except BaseException as error:
                chunk = error
            with self._changed:
                self._changed.wait_for(lambda: len(self._chunks) < AHEAD_CHUNKS or self._is_left)
                if self._is_left:
                    return
                self._chunks.append(chunk)
                self._changed.notify_all()

    def _take(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._chunks))
                chunk = self._chunks.popleft()
                self._changed.notify_all()
            if isinstance(chunk, BaseException):
                raise chunk
            if not chunk:
                return
            yield chunk
