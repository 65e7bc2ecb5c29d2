"""What arrives for the runner: inputs to run, and words about them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from farcall.errors import ConnectionLostError, ProtocolError
from farcall.wire import descriptors, messages
from farcall.wire.connection import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from farcall.sdk.client import Client


class Input(NamedTuple):
    """One input to run. The descriptors are its own."""

    seq: int
    call_id: str
    method: str
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] - nobody looks for a value in an Input
    data: bytes
    fds: tuple[int, ...]
    credit: int


class Inbox:
    """Takes the connection's messages, in whichever thread reads them; `waiter` is set when there is something new."""

    def __init__(self) -> None:
        self.client: Client | None = None
        self.waiter = Waiter()
        self.inputs: deque[Input] = deque()
        self.load: tuple[messages.Load, tuple[int, ...]] | None = None
        self.stopping = False
        self.lost = False
        self.cancelled: set[int] = set()  # that a CancelInput named, until they are answered
        self.highest = 0  # of the inputs that came
        self.started = 0  # the last input that has started
        self.running = 0  # the same, until it ends
        self.credit = 0  # items that the generator which runs may still send
        self.on_cancel: Callable[[], None] | None = None  # for the input that runs; called by whichever thread reads

    def receive(self, message: Any, fds: tuple[int, ...]) -> None:
        """Takes one message."""
        if isinstance(message, messages.Run):
            self._take(message, fds)
        elif isinstance(message, messages.RunnerCredit):
            if message.seq == self.running:
                self.credit += message.items
        elif isinstance(message, messages.CancelInput):
            if message.seq == self.running or self.started < message.seq <= self.highest:
                self.cancelled.add(message.seq)
                if message.seq == self.running and self.on_cancel is not None:
                    self.on_cancel()
        elif isinstance(message, messages.Stop):
            self.stopping = True
        elif isinstance(message, messages.Load):
            self.load = message, fds
        elif isinstance(message, ProtocolError) or self.client is None:
            descriptors.close_all(fds)
            return
        else:
            self.client.handle(message, fds)
            return
        self.waiter.set()

    def _take(self, message: messages.Run, fds: tuple[int, ...]) -> None:
        call_id, method, credit = message.call_id, message.method, message.credit
        add = self.inputs.append
        position = 0
        for each in message.inputs:
            count = each.descriptors
            mine = fds[position : position + count] if count else ()
            position += count
            add(Input(each.seq, call_id, method, each.index, each.data, mine, credit))
        if message.inputs:
            self.highest = message.inputs[-1].seq

    def lose(self, error: ConnectionLostError) -> None:
        """The connection is over."""
        self.lost = True
        if self.client is not None:
            self.client.lose(error)
        self.waiter.set()

    def drop_unstarted(self) -> list[int]:
        """Forgets the inputs that have not started; returns which they were."""
        dropped: list[int] = []
        while self.inputs:
            each = self.inputs.popleft()
            descriptors.close_all(each.fds)
            dropped.append(each.seq)
        return dropped
