"""The launcher's end of its connection to the worker: one worker at a time, and none is no reason to end."""

import contextlib
import os
import socket
import struct
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from farcall.launcher import descriptors
from farcall.launcher.loop import Loop
from farcall.launcher.messages import MAX_DATAGRAM, Failed, Reply, Request

SOCKET_NAME = "launcher.sock"

_MAX_FDS = 8
_MAX_TURN = 32  # requests taken in before containers' news have their turn
_END_SECONDS = 1.0  # for the worker to read the last reply

_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_encode = msgspec.msgpack.encode


class WorkerLink:
    """Listens, takes requests in, and sends replies without ever waiting for the worker to read them."""

    def __init__(
        self,
        loop: Loop,
        state: Path,
        on_request: Callable[[Request, list[int]], None],
        on_connected: Callable[[], None],
    ) -> None:
        """`on_request` owns the descriptors it is given. What it raises is told to the worker as an internal error."""
        self._loop = loop
        self._state = state
        self._on_request = on_request
        self._on_connected = on_connected
        self._worker: socket.socket | None = None
        self._out: deque[tuple[bytes, list[int]]] = deque()
        self._listener = self._listen()
        self._loop.add(self._listener.fileno(), self._accept)

    @property
    def connected(self) -> bool:
        """There is a worker."""
        return self._worker is not None

    def reply(self, message: Reply, fds: Sequence[int] = ()) -> None:
        """Send, or queue with copies of the descriptors, what the worker should hear; without one it goes nowhere."""
        if self._worker is not None:
            self._out.append((_encode(message), [os.dup(fd) for fd in fds]))
            self._flush()

    def stop_listening(self) -> None:
        """Take no new worker."""
        with contextlib.suppress(OSError):
            os.unlink(self._state / SOCKET_NAME)
        self._loop.remove(self._listener.fileno())
        self._listener.close()

    def close(self, last: Reply | None) -> None:
        """Send a last reply, and leave once the worker has read everything."""
        if self._worker is None:
            return
        if last is not None:
            self.reply(last)
        self._worker.settimeout(_END_SECONDS)
        with contextlib.suppress(OSError):
            for data, fds in self._out:
                descriptors.send(self._worker, data, fds)
            # Closing with something unread would discard what the worker has not read yet.
            self._worker.shutdown(socket.SHUT_WR)
            while self._worker.recv(MAX_DATAGRAM):
                pass
        self._lose()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        directory = os.open(self._state, os.O_PATH | os.O_CLOEXEC)
        # A socket's path holds 107 bytes; the way through the directory's descriptor is always short. Bound under
        # another name and renamed once it listens: whoever finds the socket can connect to it.
        new = f"/proc/self/fd/{directory}/{SOCKET_NAME}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        mask = os.umask(0o177)
        listener.bind(new)
        os.umask(mask)
        listener.listen(8)
        listener.setblocking(False)
        os.rename(new, self._state / SOCKET_NAME)
        os.close(directory)
        return listener

    def _accept(self) -> None:
        try:
            worker, _ = self._listener.accept()
        except OSError:  # it has gone again, or descriptors are short; it tries again
            return
        credentials = worker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", credentials)
        if uid != os.getuid():
            self._refuse(worker, "permission-denied", f"uid {uid} may not use the launcher of another user")
            return
        self._hear()  # the former worker's end may be waiting to be read
        if self._worker is not None:
            self._refuse(worker, "conflict", "another worker is connected to this launcher; stop it first")
            return
        worker.setblocking(False)
        self._worker = worker
        self._loop.add(worker.fileno(), self._hear)
        self._on_connected()

    def _refuse(self, worker: socket.socket, code: str, message: str) -> None:
        with worker, contextlib.suppress(OSError):
            worker.send(_encode(Failed(0, code, message)))

    def _lose(self) -> None:
        if self._worker is not None:
            self._loop.remove(self._worker.fileno())
            self._worker.close()
            self._worker = None
            for _, fds in self._out:
                descriptors.close(fds)
            self._out.clear()

    def _hear(self) -> None:
        self._flush()
        for _ in range(_MAX_TURN):
            if self._worker is None:
                return
            try:
                data, fds = descriptors.receive(self._worker, MAX_DATAGRAM, _MAX_FDS)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", list[int]()
            if not data:
                self._lose()
                return
            try:
                request = _request_decoder.decode(data)
            except msgspec.DecodeError as error:
                descriptors.close(fds)
                self.reply(Failed(0, "protocol", f"the launcher does not understand this request: {error}"))
                continue
            try:
                self._on_request(request, fds)
            except Exception as error:  # a defect; the containers must not end for it
                traceback.print_exc()
                seq = getattr(request, "seq", 0)
                log = self._state / "launcher.log"
                self.reply(Failed(seq, "internal", f"the launcher failed: {error!r}; its log is {log}"))

    def _flush(self) -> None:
        while self._worker is not None and self._out:
            data, fds = self._out[0]
            try:
                descriptors.send(self._worker, data, fds, wait=False)
            except BlockingIOError:
                self._loop.want_write(self._worker.fileno(), True)
                return
            except OSError:
                return  # end of file comes next
            descriptors.close(fds)
            self._out.popleft()
            if not self._out:
                self._loop.want_write(self._worker.fileno(), False)
