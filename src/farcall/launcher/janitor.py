"""A helper process of the launcher for what takes long: making, measuring and deleting writable areas.

Forked from the launcher before it has containers; ends with it. The launcher never waits for it.
"""

import contextlib
import os
import select
import shutil
import socket
import time
from pathlib import Path
from typing import NoReturn

import msgspec

from farcall.launcher import area, syscalls

_INTERVAL = 1.0  # seconds between two measurements of an area, at least
_SHARE = 20  # a measurement may take at most 1/20 of the time, so large areas are measured less often
MAX_MESSAGE = 64 * 1024  # bytes


class Make(msgspec.Struct, tag=True):
    """Make an area at this path, with mount points for these binds (source, target); None: one for an image."""

    path: str
    uid: int
    gid: int
    binds: list[tuple[str, str]] | None


class Watch(msgspec.Struct, tag=True):
    """Measure this area from now on; tell when it holds more than `limit` bytes."""

    container_id: str
    path: str
    limit: int


class Delete(msgspec.Struct, tag=True):
    """Stop watching, and delete this directory."""

    container_id: str
    path: str


class Made(msgspec.Struct, tag=True):
    """To the launcher: the area is ready, or could not be made."""

    path: str
    failed: bool


class Exceeded(msgspec.Struct, tag=True):
    """To the launcher: this area holds more than its limit."""

    container_id: str


Order = Make | Watch | Delete

encode = msgspec.msgpack.encode
_order_decoder: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_news_decoder: msgspec.msgpack.Decoder[Made | Exceeded] = msgspec.msgpack.Decoder(Made | Exceeded)
decode_news = _news_decoder.decode


def start(lock: int) -> tuple[int, socket.socket]:
    """Fork the janitor; returns its pid and the socket to it.

    It holds the launcher's `lock` too: no next launcher sweeps while an order of the last one is being carried out.
    """
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.close_all_but([0, 1, 2, far.fileno(), lock])
            syscalls.set_process_name("farcall-janitor")
            _run(far)
        finally:
            os._exit(1)
    far.close()
    near.setblocking(False)
    return pid, near


def _run(channel: socket.socket) -> NoReturn:
    watched: dict[str, tuple[Watch, float]] = {}  # with the time of the next measurement
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        now = time.monotonic()
        wait = min((due - now for _, due in watched.values()), default=None)
        events = poll.poll(None if wait is None else max(wait, 0) * 1000)
        if events:
            launcher_gone = events[0][1] & select.POLLHUP
            message = channel.recv(MAX_MESSAGE)
            if not message:
                os._exit(0)
            order = _order_decoder.decode(message)
            match order:
                case Make() if launcher_gone:
                    pass
                case Make():
                    _tell(channel, Made(order.path, not _make(order)))
                case Watch():
                    watched[order.container_id] = (order, time.monotonic() + _INTERVAL)
                case Delete():
                    watched.pop(order.container_id, None)
                    shutil.rmtree(order.path, ignore_errors=True)
        for container_id, (watch, due) in list(watched.items()):
            began = time.monotonic()
            if due > began:
                continue
            if disk_usage(Path(watch.path)) > watch.limit:
                _tell(channel, Exceeded(container_id))
                del watched[container_id]
            else:
                ended = time.monotonic()
                watched[container_id] = (watch, ended + max(_INTERVAL, (ended - began) * _SHARE))


def _tell(channel: socket.socket, news: Made | Exceeded) -> None:
    with contextlib.suppress(OSError):  # the launcher is gone, which the next recv says
        channel.send(encode(news))


def _make(order: Make) -> bool:
    owner = order.uid, order.gid
    root = order.path + "/root"
    try:
        os.mkdir(order.path, 0o711)
        if order.binds is None:
            area.make_layer(order.path)
        else:
            os.mkdir(root, 0o755)
            area.make_skeleton(root, owner)
            area.make_mount_points(root, order.binds, owner)
    except OSError:
        shutil.rmtree(order.path, ignore_errors=True)
        return False
    return True


def disk_usage(directory: Path) -> int:
    """Bytes allocated below a directory, not crossing into what is mounted there. Files that vanish count nothing."""
    total = 0
    pending = [os.fspath(directory)]
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
    return total
