"""What a program lets its user see: logs of its containers, progress of its maps, why a call waits.

Nothing is shown unless somebody listens: `enable_output()` in a program, `farcall run` with its own renderer. Logs
come on a connection of their own, read by a thread that exists only while somebody listens, so that calls never pay
for them.
"""

from __future__ import annotations

import select
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from farcall.sdk import events
from farcall.wire import messages

__all__ = ["enable_output"]

Listener = Callable[[events.Event], None]

listener: Listener | None = None
"""Gets every event, from any thread. Must not block for long and must not raise."""

_streams: list[LogStream] = []  # of the apps that run

PROGRESS_SECONDS = 0.1  # least time between two progress events of one map


def emit(event: events.Event) -> None:
    """Tells the listener, where there is one."""
    if listener is not None:
        listener(event)


def call_waits(call_id: str, function: str, reason: str | None) -> None:
    """A call has been waiting for over a second, for `reason`; None: it waits no more."""
    emit(events.CallWaiting(call_id=call_id, function=function, reason=reason))


def drain() -> None:
    """To be called before a result is handed out: what its function printed is shown first. The server sends a
    container's output before the results that came after it, so it has arrived by now."""
    for stream in _streams:
        stream.drain()


class MapProgressReporter:
    """Emits where one map stands, at most every `PROGRESS_SECONDS`."""

    def __init__(self, call_id: str, function: str, total: int | None) -> None:
        self._call_id = call_id
        self._function = function
        self._total = total
        self._next = 0.0
        self._done = -1

    def set_total(self, total: int) -> None:
        self._total = total

    def update(self, done: int, failed: int) -> None:
        if listener is None or done == self._done:
            return
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            self._emit(done, failed, False)

    def finish(self, done: int, failed: int) -> None:
        if listener is not None and self._total != 0:
            self._emit(done, failed, True)

    def _emit(self, done: int, failed: int, finished: bool) -> None:
        self._done = done
        emit(
            events.MapProgress(
                call_id=self._call_id,
                function=self._function,
                done=done,
                failed=failed,
                total=self._total,
                finished=finished,
            )
        )


class LogStream:
    """The live logs of one app, from a connection and a thread of their own, handed to the listener."""

    def __init__(self, app_id: str) -> None:
        from farcall.sdk import client as clients

        self._client = clients.connect_existing()
        self._thread: threading.Thread | None = None
        self._turn = threading.RLock()  # held while entries are read and shown
        if self._client is None:
            return
        self._client.on_entries = self._show
        self._client.request(lambda seq: messages.Subscribe(seq, app_id))
        self._thread = threading.Thread(target=self._read, name="farcall-logs", daemon=True)
        self._thread.start()
        _streams.append(self)

    def _read(self) -> None:
        assert self._client is not None
        connection = self._client.connection
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        while not connection.closed:
            poll.poll()
            with self._turn:
                connection.poll()

    def drain(self) -> None:
        """Shows what has arrived and is not shown yet."""
        assert self._client is not None
        with self._turn:
            while self._client.connection.poll():
                pass

    def _show(self, message: messages.LogBatch | messages.AppStats) -> None:
        if isinstance(message, messages.AppStats):
            emit(
                events.AppStats(
                    app_id=message.app_id,
                    containers_live=message.containers_live,
                    containers_started=message.containers_started,
                    inputs_done=message.inputs_done,
                    inputs_failed=message.inputs_failed,
                    start_seconds=message.start_seconds,
                    run_seconds=message.run_seconds,
                )
            )
            return
        for entry in message.entries:
            emit(log_line(entry))

    def close(self) -> None:
        """Shows what is still to come and ends. Call it after the app has stopped: its last words are then on their
        way."""
        if self._client is None or self._thread is None:
            return
        _streams.remove(self)
        if not self._client.connection.closed:
            # An answer on this connection comes after all logs sent before it.
            try:
                self._client.request(messages.ServerStatus)
            except ConnectionError:
                pass
        self._client.close()
        self._thread.join(timeout=5)


def log_line(entry: messages.LogEntry) -> events.LogLine:
    """The event that shows a log entry."""
    return events.LogLine(
        time=entry.time,
        function=entry.function,
        call_id=entry.call_id,
        index=entry.index,
        container_id=entry.container_id,
        stream=entry.stream,
        text=entry.text,
    )


@contextmanager
def enable_output() -> Generator[None]:
    """Shows, while the block lasts, the logs of this program's containers: their stdout on stdout, the rest on
    stderr."""
    global listener
    before = listener
    listener = _plain_listener
    try:
        yield
    finally:
        listener = before


def listen_unless_somebody_does() -> None:
    """`enable_output` for good, where nobody listens: for notebooks."""
    global listener
    listener = listener or _plain_listener


def _plain_listener(event: Any) -> None:
    if isinstance(event, events.LogLine):
        # Looked up each time: a notebook swaps the stream for each cell.
        stream = sys.stdout if event.stream == "stdout" else sys.stderr
        stream.write(event.text)
        stream.flush()
    elif isinstance(event, events.Notice):
        sys.stderr.write(f"{event.text}\n")
    elif isinstance(event, events.BuildStep) and event.state != "cached":
        image = f"image of {event.image}" if event.image else "image"
        step = f"{image}: step {event.step} of {event.steps}: {event.title}"
        if event.state in ("done", "failed"):
            sys.stderr.write(f"{step}: {event.state}, {event.seconds:.1f} s\n")
        elif event.state == "running" and not event.text and not event.progress:
            sys.stderr.write(f"{step}\n")
        sys.stderr.write(event.text)
        sys.stderr.flush()
