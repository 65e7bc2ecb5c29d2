"""Failures of the platform, as they travel."""

import msgspec

from farcall.errors import FarcallError
from farcall.wire import messages

_encode = msgspec.msgpack.Encoder().encode


def encode(error: FarcallError, *, call_id: str = "", container_id: str = "") -> bytes:
    """The data of an output with status PLATFORM_ERROR."""
    return _encode(of(error, call_id=call_id, container_id=container_id))


def of(error: FarcallError, *, call_id: str = "", container_id: str = "") -> messages.Failure:
    """The error as a message."""
    return messages.Failure(
        error.code,
        str(error),
        call_id,
        container_id,
        getattr(error, "may_have_run", True),
        getattr(error, "step", ""),
        getattr(error, "command", ""),
        getattr(error, "last_lines", ""),
    )
