"""The kernel's side of a FUSE file system that is only read: its requests, and our answers, as bytes.

The format is that of the kernel's include/uapi/linux/fuse.h, of version 7.40 and later (Linux 6.9): native byte order.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from typing import NamedTuple

DEVICE = "/dev/fuse"
ROOT = 1  # the root's node
MAX_READ = 1 << 20  # bytes of one read
READ_BUFFER = 64 * 1024  # bytes: no request to a file system that is only read is longer

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 14, 15, 17, 18
GETXATTR, LISTXATTR, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 22, 23, 25, 26, 27, 28, 29
INTERRUPT, DESTROY, BATCH_FORGET = 36, 38, 42

KEEP_CACHE, CACHE_DIR, NO_FLUSH, PASSTHROUGH = 1 << 1, 1 << 3, 1 << 5, 1 << 7  # of an opening

_HEADER = struct.Struct("=IIQQIIIHH")  # length, operation, number, node, uid, gid, pid, length of extensions, padding
_ANSWER = struct.Struct("=IiQ")
_INIT_IN = struct.Struct("=IIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")
_ATTRIBUTES = struct.Struct("=QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("=QQQQII")
_ATTR_OUT = struct.Struct("=QII")
_OPEN_OUT = struct.Struct("=QIi")
_READ_IN = struct.Struct("=QQI")
_STATFS = struct.Struct("=QQQQQIIII24x")
_BACKING = struct.Struct("=iIQ")
_BACKING_OPEN = 0x4010E501  # _IOW(229, 1, struct fuse_backing_map)
_BACKING_CLOSE = 0x4004E502  # _IOW(229, 2, uint32_t)

_MAJOR, _MINOR = 7, 40
_FEATURES = 1 << 0 | 1 << 18 | 1 << 22 | 1 << 30  # parallel reads; parallel lookups; long reads; more features
_PASSTHROUGH_FEATURE = 1 << 5  # of the second word
_FOR_EVER = 365 * 86400  # seconds: names are hashes
_RESEND = 7  # a notification: requests that a former server has read, and not answered, come again
_BLOCK = 4096


class Request(NamedTuple):
    """One request of the kernel."""

    operation: int
    number: int
    node: int
    pid: int  # of the process that waits, in this process's namespace; 0 where it is in none
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> Request:
        """Reads one from what the device gave."""
        length, operation, number, node, _, _, pid, _, _ = _HEADER.unpack_from(data)
        return cls(operation, number, node, pid, data[_HEADER.size : length])

    @property
    def name(self) -> bytes:
        """Of a LOOKUP."""
        return self.body.rstrip(b"\0")

    @property
    def read_range(self) -> tuple[int, int]:
        """Of a READ: first byte, and how many."""
        _, offset, size = _READ_IN.unpack_from(self.body)
        return offset, size

    @property
    def interrupted(self) -> int:
        """Of an INTERRUPT: the number of the request that nobody waits for."""
        return struct.unpack_from("=Q", self.body)[0]

    @property
    def handle(self) -> int:
        """Of a RELEASE: what OPEN has answered."""
        return struct.unpack_from("=Q", self.body)[0]


def mount_options(device: int) -> str:
    """What mount(2) is told: `device` is an opening of /dev/fuse."""
    return (
        f"fd={device},rootmode={stat.S_IFDIR | 0o555:o},user_id=0,group_id=0,"
        f"allow_other,default_permissions,max_read={MAX_READ}"
    )


def init_answer(request: Request) -> bytes:
    """To INIT: what we want of what the kernel can do."""
    _, minor, read_ahead, offered = _INIT_IN.unpack_from(request.body)
    more = struct.unpack_from("=I", request.body, _INIT_IN.size)[0] if len(request.body) >= _INIT_IN.size + 4 else 0
    return _INIT_OUT.pack(
        _MAJOR,
        min(minor, _MINOR),
        max(read_ahead, MAX_READ),
        _FEATURES & offered,
        64,  # requests in the background
        48,
        _BLOCK,  # the longest write
        1,
        MAX_READ // _BLOCK,
        0,
        _PASSTHROUGH_FEATURE & more,
        1 if more & _PASSTHROUGH_FEATURE else 0,  # file systems on top of each other that files may pass through to
        0,
    )


def entry(node: int, mode: int, size: int = 0) -> bytes:
    """To LOOKUP: it is there, for ever."""
    return _ENTRY.pack(node, 0, _FOR_EVER, _FOR_EVER, 0, 0) + _attributes(node, mode, size)


def attributes(node: int, mode: int, size: int = 0) -> bytes:
    """To GETATTR."""
    return _ATTR_OUT.pack(_FOR_EVER, 0, 0) + _attributes(node, mode, size)


def opened(handle: int, flags: int, backing: int = 0) -> bytes:
    """To OPEN and OPENDIR."""
    return _OPEN_OUT.pack(handle, flags, backing)


def statistics() -> bytes:
    """To STATFS."""
    return _STATFS.pack(0, 0, 0, 0, 0, _BLOCK, 255, _BLOCK, 0)


def _attributes(node: int, mode: int, size: int) -> bytes:
    links = 2 if stat.S_ISDIR(mode) else 1
    return _ATTRIBUTES.pack(node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, links, 0, 0, 0, _BLOCK, 0)


class Device:
    """An opening of /dev/fuse that is mounted."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        os.set_blocking(fd, False)

    def next_request(self) -> Request | None:
        """The next request; None where there is none now. Raises OSError ENODEV when it is mounted no more."""
        while True:
            try:
                return Request.of(os.read(self.fd, READ_BUFFER))
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno not in (errno.EINTR, errno.ENOENT):  # the one who asked was interrupted just then
                    raise

    def answer(self, request: Request, *parts: bytes) -> bool:
        """Answer a request; False where nobody waits for it any more."""
        return self._write(_ANSWER.pack(_ANSWER.size + sum(map(len, parts)), 0, request.number), *parts)

    def refuse(self, request: Request, error: int) -> None:
        """Answer a request with an errno."""
        self._write(_ANSWER.pack(_ANSWER.size, -error, request.number))

    def ask_again(self) -> None:
        """Let the requests come again that a former server has read, and not answered. Linux 6.9."""
        self._write(_ANSWER.pack(_ANSWER.size, _RESEND, 0))

    def pass_through(self, file: int) -> int:
        """Make a file one that reads can go to directly; returns its number. Raises OSError where there is no such
        way: before Linux 6.9, and for others than root."""
        # The number is the call's result: fcntl.ioctl would give the argument instead.
        argument = ctypes.create_string_buffer(_BACKING.pack(file, 0, 0), _BACKING.size)
        number = _libc.ioctl(self.fd, ctypes.c_ulong(_BACKING_OPEN), argument)
        if number < 0:
            raise OSError(ctypes.get_errno(), "FUSE passthrough")
        return number

    def end_passing(self, number: int) -> None:
        """No opening uses this file any more."""
        fcntl.ioctl(self.fd, _BACKING_CLOSE, struct.pack("=I", number))

    def _write(self, *parts: bytes) -> bool:
        try:
            os.writev(self.fd, parts)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            return False
        return True


_libc = ctypes.CDLL(None, use_errno=True)
