"""Remote generators: items stream with backpressure, a window of them at a time."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any

from farcall import errors
from farcall.sdk import calls, ids, outcomes, output, values
from farcall.sdk import client as clients
from farcall.wire import descriptors, messages
from farcall.wire.connection import Waiter


class _Stream:
    """The items that have come and have not been taken, and how the generator ended."""

    client: clients.Client

    def __init__(self, target: calls.Target) -> None:
        self.call_id = ids.new_id("fc")
        self.name = target.name
        self.waiter = Waiter()
        self._items: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._end: tuple[messages.Output, tuple[int, ...]] | None = None
        self._error: errors.ConnectionLostError | None = None
        self._taken = 0  # since the last credit
        self._next = 0  # the position of the item that comes next

    @property
    def over(self) -> bool:
        return self._end is not None or self._error is not None

    def receive(self, message: Any, fds: tuple[int, ...]) -> None:
        if isinstance(message, messages.Items):
            position = 0
            for number, item in enumerate(message.items):
                count = message.descriptors[number] if message.descriptors else 0
                if message.first + number == self._next:  # a message may come twice
                    self._items.append((item, fds[position : position + count]))
                    self._next += 1
                position += count
        elif isinstance(message, messages.Outputs):
            self._end = message.outputs[0], fds
        else:
            return
        self.waiter.set()

    def lose(self, error: errors.ConnectionLostError) -> None:
        self._error = error
        self.waiter.set()

    def take(self) -> tuple[bool, Any]:
        """(True, item), or (False, None) where one must be waited for. Raises StopIteration at the end, else what the
        generator raised."""
        self.waiter.clear()
        output.drain()
        if self._items:
            data, fds = self._items.popleft()
            self._taken += 1
            if self._taken >= messages.GENERATOR_WINDOW // 2 and not self.over:
                with contextlib.suppress(errors.ConnectionLostError):  # said once what has come is taken
                    self.client.connection.send(messages.Credit(self.call_id, 0, self._taken))
                self._taken = 0
            return True, values.loads(data, fds)
        if self._end is not None:
            outcomes.decode(self.call_id, *self._end)
            raise StopIteration
        if self._error is not None:
            raise errors.ConnectionLostError(
                f"{self._error} while the generator {self.name} was running (call {self.call_id})"
            )
        return False, None

    def close(self) -> None:
        self.client.close_call(self.call_id)
        if not self.over:
            calls.abandon(self.client, self.call_id)
        for _, fds in self._items:
            descriptors.close_all(fds)
        self._items.clear()


def run(target: calls.Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Generator[Any]:
    """The items of the generator. The call starts with the first `next`."""
    stream = _Stream(target)
    stream.client = calls.submit(target, "generator", args, kwargs, stream.call_id, stream)
    try:
        while True:
            try:
                there, item = stream.take()
            except StopIteration:
                return
            if there:
                yield item
            else:
                stream.client.connection.wait(stream.waiter)
    finally:
        stream.close()


async def run_async(target: calls.Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AsyncGenerator[Any]:
    """`run` for event loops."""
    stream = _Stream(target)
    stream.client = calls.submit(target, "generator", args, kwargs, stream.call_id, stream)
    try:
        while True:
            try:
                there, item = stream.take()
            except StopIteration:
                return
            if there:
                yield item
            else:
                await stream.client.connection.wait_async(stream.waiter)
    finally:
        stream.close()
