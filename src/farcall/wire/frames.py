"""Frames: how messages lie on a stream.

A frame is a 4-byte little-endian header and a body. The header's low 24 bits are the body's length in bytes, its high
8 bits the number of file descriptors that belong to the frame. The body is one msgpack message.

The decoder does no I/O. A frame that is too long is skipped whole and reported, a body that is no known message is
reported, and in both cases decoding goes on with the next frame: a length is always believed, so framing is never lost.
"""

from typing import Any

import msgspec

from farcall.errors import ProtocolError

MAX_BODY = 256 * 1024  # bytes
MAX_DESCRIPTORS = 64  # of one frame; the kernel takes 253 with one sendmsg
HEADER = 4

_LENGTH_MASK = (1 << 24) - 1


class FrameEncoder:
    """Turns messages into frames. Not thread-safe: one for each thread or lock."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()

    def encode(self, message: Any, descriptors: int = 0) -> bytes:
        """One frame, header included. Raises ProtocolError where the body would be longer than `MAX_BODY`."""
        frame = bytearray(HEADER)
        self._encoder.encode_into(message, frame, HEADER)
        length = len(frame) - HEADER
        if length > MAX_BODY:
            raise ProtocolError(
                f"a {type(message).__name__} of {length:,} bytes exceeds the frame limit of {MAX_BODY:,}"
            )
        frame[:HEADER] = (length | descriptors << 24).to_bytes(HEADER, "little")
        return bytes(frame)


class FrameDecoder:
    """Turns a byte stream into messages of one union type: `add` what arrives, then `take` until there is no more.

    All state is in the object, and changes only where no call can come between: the exception of a signal's handler,
    which Python may raise at any call, neither loses a message nor gives one twice.
    """

    def __init__(self, messages: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(messages).decode
        self._buffer = bytearray()
        self._offset = 0  # what lies before it has been taken
        self._skip = 0  # bytes of a refused frame still to come

    @property
    def pending(self) -> int:
        """Bytes that have not been taken; once `take` gave None, those of a frame that is not whole yet, at most
        `MAX_BODY` + `HEADER`."""
        return len(self._buffer) - self._offset

    def add(self, data: bytes | memoryview) -> None:
        """The next bytes of the stream."""
        self._buffer = self._buffer[self._offset :] + data
        self._offset = 0

    def take(self) -> tuple[Any, int] | None:
        """The next whole frame: its message and number of descriptors, or ProtocolError and that number where it was
        refused. None where there is none."""
        if self._skip:
            skipped = min(self._skip, self.pending)
            self._offset += skipped
            self._skip -= skipped
        offset, available = self._offset, self.pending - HEADER
        if available < 0 or self._skip:
            return None
        header = int.from_bytes(self._buffer[offset : offset + HEADER], "little")
        offset += HEADER
        length, descriptors = header & _LENGTH_MASK, header >> 24
        if length > MAX_BODY or descriptors > MAX_DESCRIPTORS:
            refusal = _refusal(length, descriptors)
            self._offset, self._skip = offset, length
            return refusal, descriptors
        if available < length:
            return None
        end = offset + length
        try:
            message = self._decode(self._buffer[offset:end])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
            message = ProtocolError(f"a frame of {length:,} bytes is no known message: {error}")
        self._offset = end
        return message, descriptors


def _refusal(length: int, descriptors: int) -> ProtocolError:
    if descriptors > MAX_DESCRIPTORS:
        return ProtocolError(f"a frame claims {descriptors} descriptors; the limit is {MAX_DESCRIPTORS}")
    return ProtocolError(f"a frame of {length:,} bytes exceeds the limit of {MAX_BODY:,}; it was skipped")
