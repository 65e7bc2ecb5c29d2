"""Blobs over a socket: between workers, with TLS, and between the processes of one machine.

A request is a line of words, the last of which says how many bytes follow: those of a blob that is to be put. An answer
is a byte that says how it went, how much follows in eight bytes, and that: the blob, or in words what is wrong. All
that is asked for has a deadline, however the other end trickles.
"""

from __future__ import annotations

import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum

from farcall.content.attempts import TransientError
from farcall.content.tiers.tier import MAX_BLOB_BYTES
from farcall.errors import ConnectionError, CorruptedError, FarcallError, NotFoundError, PermissionDeniedError

HANDSHAKE_SECONDS = 10.0
IDLE_SECONDS = 120.0  # after which a connection that nobody asks anything on is closed
MAX_CONNECTIONS = 256  # further ones are closed at once
_GOODBYE_SECONDS = 2.0  # in which one that is not admitted can ask, and is told
_MAX_LINE = 1024
_HEADER = struct.Struct(">BQ")

Answer = Callable[[str, Sequence[str], bytes], bytes]


class Status(IntEnum):
    """How a request went."""

    FOUND = 0
    MISSING = 1
    REFUSED = 2
    PASSING = 3  # it may be there later
    FAILED = 4


class BlobServer:
    """Answers what comes on a listening socket, with a thread for each connection. Close it after use."""

    def __init__(
        self,
        listener: socket.socket,
        answer: Answer,
        context: ssl.SSLContext | None = None,
        admits: Callable[[str], bool] | None = None,
    ) -> None:
        """`answer` gets who asks, as their certificate names them ("" without TLS), the words, and the bytes behind
        them; it returns a blob, or raises as `Tier.get` does. With TLS, `admits` says of such a name whether it is
        listened to: else it is told so, and its connection ends. A certificate alone may be of one that was removed."""
        self._listener = listener
        self._answer = answer
        self._context = context
        self._admits = admits
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._is_closed = False
        self._thread = threading.Thread(target=self._accept, name="blobs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nothing is answered any more; connections end."""
        self._is_closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._thread.join()
        self._listener.close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if not self._is_closed:
                    time.sleep(0.1)  # no descriptor is left, most likely
                continue
            with self._lock:
                is_wanted = len(self._open) < MAX_CONNECTIONS and not self._is_closed
                if is_wanted:
                    self._open.add(connection)
            if is_wanted:
                threading.Thread(target=self._serve, args=(connection,), name="blob", daemon=True).start()
            else:
                connection.close()

    def _serve(self, accepted: socket.socket) -> None:
        connection = accepted
        try:
            connection.settimeout(HANDSHAKE_SECONDS)
            who = ""
            if self._context is not None:
                connection = self._context.wrap_socket(accepted, server_side=True)
                with self._lock:
                    self._open.discard(accepted)
                    self._open.add(connection)
                who = name_of(connection)
            is_admitted = self._admits is None or self._admits(who)
            connection.settimeout(IDLE_SECONDS if is_admitted else _GOODBYE_SECONDS)
            with connection.makefile("rb") as reader:
                while not self._is_closed and (line := reader.readline(_MAX_LINE)).endswith(b"\n"):
                    *words, size = line.decode().split()
                    if not 0 <= int(size) <= MAX_BLOB_BYTES:
                        return
                    if not is_admitted:
                        said = f"the server has not said that {who or 'nobody'} may have anything from here"
                        status, data = Status.REFUSED, said.encode()
                    else:
                        status, data = self._result(who, words, reader.read(int(size)))
                    connection.sendall(_HEADER.pack(status, len(data)))
                    connection.sendall(data)
                    if status == Status.REFUSED and self._admits is not None and not self._admits(who):
                        return
        except (OSError, ValueError):
            pass  # a connection that breaks is the other end's business
        finally:
            with self._lock:
                self._open -= {accepted, connection}
            connection.close()

    def _result(self, who: str, words: Sequence[str], body: bytes) -> tuple[Status, bytes]:
        try:
            return Status.FOUND, self._answer(who, words, body)
        except NotFoundError as error:
            return Status.MISSING, str(error).encode()
        except PermissionDeniedError as error:
            return Status.REFUSED, str(error).encode()
        except TransientError as error:
            return Status.PASSING, error.what.encode()
        except FarcallError as error:
            return Status.FAILED, str(error).encode()
        except Exception as error:
            logging.getLogger("farcall.content").exception("%s was not answered", " ".join(words))
            return Status.FAILED, repr(error).encode()


class BlobClient:
    """Asks one `BlobServer`. Any number of threads may; each has a connection of its own while it waits."""

    def __init__(self, title: str, connect: Callable[[], socket.socket], seconds: float) -> None:
        """`connect` makes a connection, and raises OSError; an answer may take `seconds` in all."""
        self._title = title
        self._connect = connect
        self._seconds = seconds
        self._lock = threading.Lock()
        self._idle: list[tuple[socket.socket, float]] = []  # with since when, the last one last
        self._busy: set[socket.socket] = set()
        self._is_closed = False

    def ask(self, *words: str, body: bytes = b"", most: int = MAX_BLOB_BYTES) -> bytes:
        """The answer. Raises OSError where the other end is gone, or takes too long, or answers with more than `most`
        bytes; else as `Tier.get` does."""
        with self._lock:
            connection = self._idle.pop()[0] if self._idle else None
        if connection is not None:
            try:
                return self._exchange(connection, words, body, most)
            except (FarcallError, TimeoutError):  # some of the former are OSErrors, too
                raise
            except OSError:
                pass  # it had been closed at the other end, most likely
        return self._exchange(self._connect(), words, body, most)

    def close(self) -> None:
        """Ends all connections: who waits for an answer gets an OSError."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            for connection in self._busy:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for connection, _ in idle:
            connection.close()

    def close_idle(self, seconds: float) -> None:
        """Ends the connections on which nothing was asked for so many seconds."""
        since = time.monotonic() - seconds
        with self._lock:
            old = [one for one in self._idle if one[1] <= since]
            self._idle = [one for one in self._idle if one[1] > since]
        for connection, _ in old:
            connection.close()

    def _exchange(self, connection: socket.socket, words: Sequence[str], body: bytes, most: int) -> bytes:
        deadline = time.monotonic() + self._seconds
        with self._lock:
            self._busy.add(connection)
        try:
            if self._is_closed:
                raise OSError("nobody is asked any more")
            connection.settimeout(self._seconds)
            connection.sendall(" ".join((*words, str(len(body)))).encode() + b"\n" + body)
            status, size = _HEADER.unpack(_read(connection, _HEADER.size, deadline))
            if size > most:
                raise OSError(f"{size:,} bytes are more than was asked for")
            data = _read(connection, size, deadline)
        except BaseException:
            with self._lock:
                self._busy.discard(connection)
            connection.close()
            raise
        with self._lock:
            self._busy.discard(connection)
            is_kept = not self._is_closed
            if is_kept:
                self._idle.append((connection, time.monotonic()))
        if not is_kept:
            connection.close()
        return self._open(status, data)

    def _open(self, status: int, data: bytes) -> bytes:
        if status == Status.FOUND:
            return data
        said = data.decode(errors="replace")
        if status == Status.MISSING:
            raise NotFoundError(said)
        if status == Status.REFUSED:
            raise PermissionDeniedError(said)
        if status == Status.PASSING:
            raise TransientError(ConnectionError, said)
        raise CorruptedError(f"{self._title} failed: {said}")


def name_of(connection: ssl.SSLSocket) -> str:
    """Whom the certificate at the other end names; "" for nobody."""
    certificate = connection.getpeercert() or {}
    subject: Sequence[Sequence[tuple[str, str]]] = certificate.get("subject", ())  # pyright: ignore[reportAssignmentType]
    return next((value for part in subject for key, value in part if key == "commonName"), "")


def _read(connection: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        read = connection.recv_into(view)
        if not read:
            raise OSError("the other end closed the connection")
        view = view[read:]
    return bytes(data)
