"""A slow line to a TCP server: a port whose connections lead there, later, and no faster than a rate for all."""

from __future__ import annotations

import multiprocessing
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.delay import Late, give

_PIECE = 256 << 10
_GET = re.compile(rb"GET (\S+) HTTP/1\.1\r\n")
_LONGEST_LINE = 2048
_UNDER_WAY = 64  # pieces


class _Rate:
    """Bytes a second, for all connections together."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def wait(self, size: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self._rate
            pause = self._free_at - now
        if pause > 0.001:
            time.sleep(pause)


class _Requests:
    """What is asked for by HTTP on one connection, in a file that is shared by all: a path a line."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._tail = b""

    def see(self, data: bytes) -> None:
        data = self._tail + data
        end = 0
        for found in _GET.finditer(data):
            os.write(self._file, found[1] + b"\n")
            end = found.end()
        self._tail = data[max(end, len(data) - _LONGEST_LINE) :]

    def close(self) -> None:
        os.close(self._file)


def _carry(
    source: socket.socket,
    target: socket.socket,
    seconds: float,
    rate: _Rate | None,
    count: Any,
    requests: _Requests | None = None,
) -> None:
    under_way: queue.Queue[Late] = queue.Queue(_UNDER_WAY)

    def give_all() -> None:
        give(under_way, target.sendall)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    threading.Thread(target=give_all, daemon=True).start()
    data = b"more"
    while data:
        try:
            data = source.recv(_PIECE)
        except OSError:
            data = b""
        if rate is not None:
            rate.wait(len(data))
            with count.get_lock():
                count.value += len(data)
        if requests is not None:
            requests.see(data)
        under_way.put((time.monotonic() + seconds, data))
    if requests is not None:
        requests.close()


def _serve(listener: socket.socket, port: int, seconds: float, rate: float, count: Any, log: Path | None) -> None:
    limit = _Rate(rate)
    while True:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", port))
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        requests = None if log is None else _Requests(log)
        for arguments in ((near, far, seconds, None, count, requests), (far, near, seconds, limit, count)):
            threading.Thread(target=_carry, args=arguments, daemon=True).start()


class SlowLine:
    """The near end."""

    def __init__(self, port: int, count: Any) -> None:
        self.port = port
        self._count = count

    @property
    def received(self) -> int:
        """Bytes that the server has sent so far."""
        return self._count.value


@contextmanager
def slow_line(port: int, round_trip: float, rate: float, log: Path | None = None) -> Generator[SlowLine]:
    """A line to `port` of this machine, of `round_trip` seconds and `rate` bytes a second from there. Into `log` go the
    paths of all that is got there by HTTP, one a line."""
    count: Any = multiprocessing.Value("q", 0)
    listener = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("fork").Process(
        target=_serve, args=(listener, port, round_trip / 2, rate, count, log), daemon=True
    )
    process.start()
    near = listener.getsockname()[1]
    listener.close()
    try:
        yield SlowLine(near, count)
    finally:
        process.kill()
        process.join()
