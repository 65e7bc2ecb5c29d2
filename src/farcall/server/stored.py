"""Values in the store: what is inline and what a memory file holds, as one piece of bytes."""

import msgspec

from farcall.wire.descriptors import close_all
from farcall.wire.memory import from_memory, to_memory


class _Value(msgspec.Struct, array_like=True):
    data: bytes
    memory: bytes | None = None
    container_id: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Value).decode


def pack(data: bytes, fds: tuple[int, ...], container_id: str = "") -> bytes:
    """The value as the store keeps it. Closes the descriptors."""
    try:
        return _encode(_Value(data, from_memory(fds[0]) if fds else None, container_id))
    finally:
        close_all(fds)


def unpack(stored: bytes) -> tuple[bytes, tuple[int, ...], str]:
    """Data, descriptors (the caller's from now on) and container id of a stored value."""
    value = _decode(stored)
    return value.data, () if value.memory is None else (to_memory(value.memory),), value.container_id
