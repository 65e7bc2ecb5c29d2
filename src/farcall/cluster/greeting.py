"""What a server and a worker say before their connection is a link: one message each, in frames."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Protocol

import msgspec

from farcall import errors
from farcall.wire import messages
from farcall.wire.frames import HEADER, MAX_BODY, FrameEncoder

SECONDS = 10.0  # that the other end may take


class Reader(Protocol):
    async def readexactly(self, n: int, /) -> bytes: ...


async def receive(reader: Reader, expected: Any) -> Any:
    """The other end's message. Raises ConnectionError where none comes, ProtocolError where that is no message of
    these, and the error that a Failed holds."""
    try:
        async with asyncio.timeout(SECONDS):
            header = int.from_bytes(await reader.readexactly(HEADER), "little")
            if header > MAX_BODY:
                raise errors.ProtocolError("the other end does not speak farcall's protocol")
            body = await reader.readexactly(header)
    except TimeoutError:
        raise errors.ConnectionError(f"the other end said nothing for {SECONDS:g} s") from None
    except ssl.SSLError:
        raise
    except (OSError, asyncio.IncompleteReadError) as error:
        raise errors.ConnectionError(f"the other end closed the connection ({error})") from error
    try:
        message = msgspec.msgpack.decode(body, type=expected | messages.Failed)
    except (msgspec.DecodeError, ValueError, RecursionError, OverflowError) as error:
        raise errors.ProtocolError(f"what the other end said is no known message: {error}") from None
    if isinstance(message, messages.Failed):
        raise errors.from_code(message.failure.code, message.failure.message)
    return message


def encode(message: Any) -> bytes:
    """A message, ready to be written."""
    return FrameEncoder().encode(message)


def refusal(error: errors.FarcallError) -> messages.Failed:
    """What the other end is told."""
    return messages.Failed(0, messages.Failure(error.code, str(error)))
