"""Ends of a link's channels that are in this process: no socket lies between the link and who it speaks for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from farcall.errors import ProtocolError
from farcall.link.channel import Channel, End
from farcall.wire.descriptors import close_all

REFUSALS = 100  # messages that are none, or have no place, after which the other end is given up

_encode = msgspec.msgpack.Encoder().encode


class LocalEnd:
    """One connection by way of a link, with the interface of a `Transport` to whoever uses it.

    `on_message(message, fds)` gets what the other end sends, and owns the descriptors. `on_close()` is called once,
    when the other end, or this one, has closed it. `on_refusals(why)`, where it is set, is called once, when the other
    end has sent `REFUSALS` messages that are none, or have no place; nothing more is taken from then on.
    """

    def __init__(self, messages: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(messages).decode
        self._channel: Channel | None = None
        self.on_message: Callable[[Any, tuple[int, ...]], None] = _refuse
        self.on_close: Callable[[], None] = lambda: None
        self.on_pause: Callable[[], None] = lambda: None
        self.on_resume: Callable[[], None] = lambda: None
        self.on_refusals: Callable[[str], None] | None = None
        self.closed = False
        self._refused = 0

    def connect(self, channel: Channel) -> End:
        """This end of a channel, once."""
        self._channel = channel
        return _ChannelSide(self)

    @property
    def buffered(self) -> int:
        """Bytes accepted by `send` that have not left."""
        return 0 if self._channel is None else self._channel.queued

    @property
    def waiting(self) -> int:
        """Messages that have not left."""
        return 0 if self._channel is None else self._channel.waiting

    @property
    def held(self) -> int:
        """Bytes in memory for them, with files."""
        return 0 if self._channel is None else self._channel.held

    def send(self, message: Any, fds: Sequence[int] = (), *, counts: bool = True) -> None:
        """Sends one message. Takes over the descriptors. A closed end drops both. `counts`: see `Channel.read`."""
        if self.closed or self._channel is None:
            close_all(fds)
            return
        body = message if isinstance(message, msgspec.Raw) else msgspec.Raw(_encode(message))
        self._channel.read(body, tuple(fds), counts=counts)

    def pause(self) -> None:
        """Links have windows of their own: what has come is handed on."""

    def resume(self) -> None:
        """As `pause`."""

    def close(self, *, after_flush: bool = False) -> None:
        """Ends the connection; what was sent before arrives."""
        if self.closed:
            return
        self.closed = True
        if self._channel is not None:
            self._channel.ended()
        self.on_close()

    def cut(self) -> None:
        """The other end has closed it."""
        self.close()

    def take(self, message: Any, fds: tuple[int, ...]) -> None:
        """What has come by the link, encoded."""
        if self.closed or (self._refused >= REFUSALS and self.on_refusals is not None):
            close_all(fds)
            return
        try:
            decoded = self._decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
            close_all(fds)
            self._refuse("a frame of %d bytes is no known message: %s", len(message), error)
            return
        try:
            self.on_message(decoded, fds)
        except ProtocolError as error:
            self._refuse("a %s was refused: %s", type(decoded).__name__, error)
        except Exception:
            # The messages behind it are not to be lost for it.
            logging.getLogger("farcall.cluster").exception("a %s was not handled", type(decoded).__name__)

    def _refuse(self, line: str, *values: object) -> None:
        self._refused += 1
        logging.getLogger("farcall.cluster").error(line, *values)
        if self._refused == REFUSALS and self.on_refusals is not None:
            self.on_refusals(f"{REFUSALS} messages came from it that are none, or had no place")


class _ChannelSide:
    """What the channel sees of a `LocalEnd`."""

    def __init__(self, end: LocalEnd) -> None:
        self._end = end
        self.buffered = 0
        self.on_drained: Callable[[], None] | None = None

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        self._end.take(message, tuple(fds))

    def flush(self) -> None:
        """Nothing ever waits here."""

    def pause(self) -> None:
        self._end.on_pause()

    def resume(self) -> None:
        self._end.on_resume()

    def close(self, *, after_flush: bool = False) -> None:
        self._end.cut()


def _refuse(message: Any, fds: tuple[int, ...]) -> None:
    close_all(fds)
    raise TypeError(f"nobody takes a {type(message).__name__}")
