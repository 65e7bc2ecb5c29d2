"""Logs: from containers to the store, and live to whoever has subscribed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from farcall.server.call import Input
from farcall.wire import messages
from farcall.worker.container import Assignment, Container
from farcall.worker.logstore import LogStore

if TYPE_CHECKING:
    from farcall.server.session import Session

UNSENT_LIMIT = 16 * 1024 * 1024  # bytes a slow reader may be behind before it misses entries
ENTRY_TEXT = 48 * 1024  # characters of one entry; a character takes up to 4 bytes, and a LogBatch must fit a frame
BATCH_BYTES = 200 * 1024  # of several entries in one LogBatch
ENTRY_BYTES = 256  # that an entry takes besides its text, at most
HELD_ENTRIES = 10_000  # that wait while older ones are read

Stream = Literal["stdout", "stderr", "system"]


class Subscription:
    """Who wants the entries that match, live. `seq` is that of the request."""

    def __init__(self, session: Session, seq: int, matches: Callable[[messages.LogEntry], bool]) -> None:
        self.session = session
        self.seq = seq
        self.matches = matches
        self.missed = 0
        self._held: list[messages.LogEntry] | None = None

    def hold(self) -> None:
        """Keeps entries back until `release`."""
        self._held = []

    def release(self, after: float) -> None:
        """Sends what was kept back and is newer than that time, and from now on what comes."""
        held, self._held = self._held or [], None
        for entry in held:
            if entry.time > after:
                self.send(entry)

    def send(self, entry: messages.LogEntry) -> None:
        if not self.matches(entry):
            return
        if self._held is not None and len(self._held) < HELD_ENTRIES:
            self._held.append(entry)
            return
        if self._held is not None or self.session.buffered > UNSENT_LIMIT:
            self.missed += 1
            return
        entries = [entry]
        if self.missed:
            text = f"[farcall: {self.missed} pieces of output not shown: they came faster than they could be read]\n"
            entries.insert(
                0, messages.LogEntry(entry.time, entry.app_id, "", "", -1, entry.container_id, "system", text)
            )
            self.missed = 0
        self.session.send(messages.LogBatch(self.seq, entries))


def batches(entries: Iterable[messages.LogEntry]) -> Iterator[list[messages.LogEntry]]:
    """The entries in lists that fit a LogBatch."""
    batch: list[messages.LogEntry] = []
    size = 0
    for entry in entries:
        length = ENTRY_BYTES + len(entry.text) * (1 if entry.text.isascii() else 4)
        if batch and size + length > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += length
    if batch:
        yield batch


class Logs:
    """All output of all containers."""

    def __init__(self, directory: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.store = LogStore(directory, schedule=self._schedule)
        self._subscriptions: list[Subscription] = []

    def _schedule(self, seconds: float, work: Callable[[], None]) -> None:
        def later() -> None:
            self._loop.call_later(seconds, flush)

        def flush() -> None:
            self._loop.run_in_executor(None, work)

        self._loop.call_soon_threadsafe(later)

    def subscribe(self, subscription: Subscription) -> None:
        """Entries from now on go to it, too."""
        self._subscriptions.append(subscription)

    def unsubscribe(self, subscription: Subscription) -> None:
        """It gets no more."""
        self._subscriptions = [one for one in self._subscriptions if one is not subscription]

    def forget(self, session: Session) -> None:
        """The session is over."""
        self._subscriptions = [one for one in self._subscriptions if one.session is not session]

    def add(self, container: Container, stream: Stream, text: str, one: Input | None) -> None:
        """Something a container wrote; `one` is the input that wrote it, where that is known."""
        self._add(
            container, stream, text, one.call.call_id if one is not None else "", one.index if one is not None else -1
        )

    def add_raw(self, container: Container, stream: str, text: str) -> None:
        """Something that came through a container's pipe: whose it is is known where an input runs."""
        self.add_of(container, stream, text, container.running())

    def add_of(self, container: Container, stream: str, text: str, running: Assignment | None) -> None:
        """Something that a container wrote while it ran that input."""
        call_id, index = (running.call_id, running.index) if running is not None else ("", -1)
        self._add(container, "stdout" if stream == "stdout" else "stderr", text, call_id, index)

    def add_system(self, container: Container, text: str) -> None:
        """Our own word about a container."""
        self._add(container, "system", text, "", -1)

    def _add(self, container: Container, stream: Stream, text: str, call_id: str, index: int) -> None:
        for start in range(0, len(text), ENTRY_TEXT):
            entry = messages.LogEntry(
                time.time(),
                container.app_id,
                container.function.name,
                call_id,
                index,
                container.container_id,
                stream,
                text[start : start + ENTRY_TEXT],
            )
            self.store.append(entry)
            for subscription in self._subscriptions:
                subscription.send(entry)
