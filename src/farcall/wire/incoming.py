"""What arrives on a socket: bytes and descriptors, put together again as messages."""

from collections.abc import Iterator
from typing import Any

from farcall.errors import ProtocolError
from farcall.wire import descriptors
from farcall.wire.frames import FrameDecoder


class Incoming:
    """The receiving half of a connection, without the socket."""

    def __init__(self, messages: Any) -> None:
        self._decoder = FrameDecoder(messages)
        self._arrived = descriptors.DescriptorQueue()

    def feed(self, data: memoryview, ancillary: descriptors.Ancillary) -> Iterator[tuple[Any, tuple[int, ...]]]:
        """Takes what one `recvmsg` returned; yields each message, or ProtocolError, with its descriptors, which are now
        the caller's. Consume the iterator fully before feeding more. A message whose descriptors were lost comes
        without them, after a ProtocolError: whoever waits for it must not wait in vain."""
        if ancillary:
            self._arrived.add(ancillary)
        for message, carried in self._decoder.feed(data):
            fds: tuple[int, ...] = ()
            if carried:
                try:
                    fds = self._arrived.take(carried)
                except ProtocolError as error:
                    yield error, ()
                if isinstance(message, ProtocolError):
                    descriptors.close_all(fds)
                    fds = ()
            yield message, fds

    def close(self) -> None:
        """Closes the descriptors that no message claimed."""
        self._arrived.close()
