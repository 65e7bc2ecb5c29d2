"""Values in the store: what is inline and what a memory file holds, as one piece of bytes."""

import fcntl
import os
from collections.abc import Sequence

import msgspec

from farcall import errors
from farcall.server.call import check_size
from farcall.wire import messages
from farcall.wire.descriptors import close_all
from farcall.wire.memory import from_memory, to_memory

MAX_BYTES = 2**30  # of one value


class _Value(msgspec.Struct, array_like=True):
    data: bytes
    memory: bytes | None = None
    container_id: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Value).decode


def pack_inputs(inputs: Sequence[messages.Input], fds: tuple[int, ...]) -> list[bytes]:
    """The inputs of a message as the store keeps them. The descriptors stay the caller's.

    Raises ResourceExhaustedError where one is too large, ProtocolError where one is no memory file.
    """
    packed: list[bytes] = []
    position = 0
    for one in inputs:
        mine = fds[position : position + one.descriptors]
        position += one.descriptors
        check_size(one)
        packed.append(_encode(_Value(one.data, _read(mine))))
    return packed


def _read(fds: tuple[int, ...]) -> bytes | None:
    if not fds:
        return None
    # Code in containers chooses what it sends here: a pipe would block, a sparse file fill the server's memory.
    fd = fds[0]
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        raise errors.ProtocolError("a value came with a descriptor that is no memory file") from None
    status = os.fstat(fd)
    if status.st_size > MAX_BYTES:
        raise errors.ResourceExhaustedError(
            f"a value of {status.st_size / 2**20:,.0f} MiB is too large for spawn, which keeps inputs and results for "
            f"days; the limit is {MAX_BYTES // 2**20:,} MiB. Use .remote, or pass the name of a file"
        )
    return from_memory(fd)


def pack(data: bytes, fds: tuple[int, ...], container_id: str = "") -> bytes:
    """The value as the store keeps it. Closes the descriptors. Raises as `pack_inputs` does."""
    try:
        return _encode(_Value(data, _read(fds), container_id))
    finally:
        close_all(fds)


def failure_of(stored: bytes) -> messages.Failure:
    """What the platform said in a stored output whose status is PLATFORM_ERROR."""
    return msgspec.msgpack.decode(_decode(stored).data, type=messages.Failure)


def unpack(stored: bytes) -> tuple[bytes, tuple[int, ...], str]:
    """Data, descriptors (the caller's from now on) and container id of a stored value."""
    value = _decode(stored)
    return value.data, () if value.memory is None else (to_memory(value.memory),), value.container_id
