"""Frames: how messages lie on a stream.

A frame is a 4-byte little-endian header and a body. The header's low 24 bits are the body's length in bytes, its high
8 bits the number of file descriptors that belong to the frame. The body is one msgpack message.

The decoder does no I/O. A frame that is too long is skipped whole and reported, a body that is no known message is
reported, and in both cases decoding goes on with the next frame: a length is always believed, so framing is never lost.
"""

from collections.abc import Iterator
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
    """Turns a byte stream into messages of one union type.

    `feed` yields, in order, `(message, number of descriptors)` for each whole frame, or `(ProtocolError, number)` for
    one that was refused.
    """

    def __init__(self, messages: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(messages).decode
        self._buffer = bytearray()
        self._skip = 0  # bytes of a refused frame still to come

    @property
    def pending(self) -> int:
        """Bytes held of a frame that is not whole yet; at most `MAX_BODY` + `HEADER`."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[Any, int]]:
        """Takes the next bytes of the stream. Consume the iterator fully before feeding more."""
        if self._skip:
            dropped = min(self._skip, len(data))
            self._skip -= dropped
            data = memoryview(data)[dropped:]
        # Most reads hold whole frames only, so the common path decodes straight from what was read.
        if self._buffer:
            self._buffer += data
            view = memoryview(self._buffer)
        else:
            view = memoryview(data)
        offset, end = 0, len(view)
        try:
            while end - offset >= HEADER:
                header = int.from_bytes(view[offset : offset + HEADER], "little")
                length, descriptors = header & _LENGTH_MASK, header >> 24
                if length > MAX_BODY or descriptors > MAX_DESCRIPTORS:
                    available = end - offset - HEADER
                    self._skip = max(0, length - available)
                    offset += HEADER + min(length, available)
                    yield _refusal(length, descriptors), descriptors
                    continue
                if end - offset - HEADER < length:
                    break
                body = view[offset + HEADER : offset + HEADER + length]
                try:
                    message = self._decode(body)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
                    message = ProtocolError(f"a frame of {length:,} bytes is no known message: {error}")
                finally:
                    body.release()
                # Only now: where the exception of a signal's handler ends this, what is not decoded is kept.
                offset += HEADER + length
                yield message, descriptors
        finally:
            rest = bytearray(view[offset:])
            view.release()
            self._buffer = rest


def _refusal(length: int, descriptors: int) -> ProtocolError:
    if descriptors > MAX_DESCRIPTORS:
        return ProtocolError(f"a frame claims {descriptors} descriptors; the limit is {MAX_DESCRIPTORS}")
    return ProtocolError(f"a frame of {length:,} bytes exceeds the limit of {MAX_BODY:,}; it was skipped")
