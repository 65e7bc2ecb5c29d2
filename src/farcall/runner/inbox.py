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
    batch: int  # number of the last input of its batch, 0: it is in none


class Credit:
    """How many items a generator may still send. `waiter` is set when that changes, and when it is to stop."""

    __slots__ = ("items", "waiter")

    def __init__(self, items: int) -> None:
        self.items = items
        self.waiter = Waiter()


class Inbox:
    """Takes the connection's messages, in whichever thread reads them; `waiter` is set when there is something new."""

    def __init__(self) -> None:
        self.client: Client | None = None
        self.waiter = Waiter()
        self.inputs: deque[Input] = deque()
        self.load: tuple[messages.Load, tuple[int, ...]] | None = None
        self.stopping = False
        self.lost = False
        self.cancelled: dict[int, int] = {}  # inputs that a CancelInput named, and why, until they are answered
        self.highest = 0  # of the inputs that came
        self.started = 0  # the last input that has started
        self.running = 0  # the same, until it ends, where one runs at a time
        self.credits: dict[int, Credit] = {}  # of the generators that run
        self.on_cancel: dict[int, Callable[[], None]] = {}  # of inputs that run; called by whichever thread reads

    def receive(self, message: Any, fds: tuple[int, ...]) -> None:
        """Takes one message."""
        if isinstance(message, messages.Run):
            self._take(message, fds)
        elif isinstance(message, messages.RunnerCredit):
            credit = self.credits.get(message.seq)
            if credit is not None:
                credit.items += message.items
                credit.waiter.set()
        elif isinstance(message, messages.CancelInput):
            self.cancel(message.seq, message.reason)
        elif isinstance(message, messages.Stop):
            self.stop()
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
        call_id, method, credit, batch = message.call_id, message.method, message.credit, message.batch
        add = self.inputs.append
        position = 0
        for each in message.inputs:
            count = each.descriptors
            mine = fds[position : position + count] if count else ()
            position += count
            add(Input(each.seq, call_id, method, each.index, each.data, mine, credit, batch))
        if message.inputs:
            self.highest = message.inputs[-1].seq

    def cancel(self, seq: int, reason: int) -> None:
        """An input is not to be run, or to be stopped, for that reason. One that has ended is let be."""
        if seq not in self.on_cancel and seq != self.running and not self.started < seq <= self.highest:
            return  # it has ended
        # Noted before the look: whoever starts the input enters what stops it and then looks here.
        self.cancelled[seq] = reason
        on_cancel = self.on_cancel.get(seq)
        if on_cancel is not None:
            on_cancel()
        credit = self.credits.get(seq)
        if credit is not None:
            credit.waiter.set()

    @property
    def ready(self) -> bool:
        """Whether there is something to run: an input, or a batch of which all have come."""
        return bool(self.inputs) and self.inputs[0].batch <= self.highest

    def take_batch(self) -> list[Input]:
        """What is to be run next: one input, or a batch. Only where it is `ready`."""
        first = self.inputs.popleft()
        taken = [first]
        while taken[-1].seq < first.batch:
            taken.append(self.inputs.popleft())
        return taken

    def open_credit(self, each: Input) -> Credit:
        """The generator `each` runs from now on, until its credit is taken out of `credits`."""
        credit = self.credits[each.seq] = Credit(each.credit)
        return credit

    def stop(self) -> None:
        """Nothing more is to be started, and generators are to end."""
        self.stopping = True
        self._wake()

    def lose(self, error: ConnectionLostError) -> None:
        """The connection is over."""
        self.lost = True
        if self.client is not None:
            self.client.lose(error)
        self._wake()

    def _wake(self) -> None:
        self.waiter.set()
        for credit in list(self.credits.values()):
            credit.waiter.set()

    def drop_unstarted(self) -> list[int]:
        """Forgets the inputs that have not started; returns which they were."""
        dropped: list[int] = []
        while self.inputs:
            each = self.inputs.popleft()
            descriptors.close_all(each.fds)
            dropped.append(each.seq)
        return dropped
