"""What the runner sends of its own: results, items of generators and printed text, gathered into few frames.

A send costs several times what a short function does, so results of inputs that end within the same millisecond travel
together. Nothing finished may wait for an input that runs long, though: results are held back only after a row of short
inputs, and meanwhile a thread looks every few milliseconds. It exists only under such load, so that a process that
forks normally has one thread. (An extension that keeps the GIL for long keeps the thread from looking.)
"""

from __future__ import annotations

import _thread
import threading
from time import monotonic
from typing import TYPE_CHECKING, Literal

from farcall.errors import ConnectionLostError
from farcall.wire import descriptors, messages

if TYPE_CHECKING:
    from farcall.runner.channel import RunnerConnection
    from farcall.sdk.values import Payload

FRAME_BYTES = 224 * 1024  # of values in one frame; the rest is for the message around them
FRAME_VALUES = 2048
TEXT_LENGTH = 16 * 1024  # characters of one message, at most; a character takes up to 4 bytes
FRAME_DESCRIPTORS = 48
HOLD_SECONDS = 0.001  # how long finished inputs are gathered
SHORT_SECONDS = 0.0005  # an input that takes longer is not short
SHORT_INPUTS = 16  # so many short inputs in a row before results are held back at all
LATE_SECONDS = 0.003  # how often the thread looks for what is held back
QUIET_ROUNDS = 30  # looks without a find after which the thread ends


class _Text:
    """Text that was printed by one input to one stream."""

    __slots__ = ("length", "parts", "seq", "stream")

    def __init__(self, seq: int, stream: Literal["stdout", "stderr"]) -> None:
        self.seq = seq
        self.stream: Literal["stdout", "stderr"] = stream
        self.parts: list[str] = []
        self.length = 0


class Outbox:
    """Sends in the order of its calls. Any thread; a signal handler may use it whatever it interrupts."""

    def __init__(self) -> None:
        self.connection: RunnerConnection | None = None
        self._lock = threading.RLock()
        self._sending = False
        self._last = 0.0  # when something was sent
        self._results: list[messages.Result] = []
        self._result_fds: list[int] = []
        self._items: list[bytes] = []
        self._item_counts: list[int] = []
        self._item_fds: list[int] = []
        self._item_seq = 0
        self._first_item = 0
        self._texts: list[_Text] = []
        self._bytes = 0
        self._thread_done: _thread.LockType | None = None  # held while the thread lives
        self._stop_thread = False

    # --- what is sent

    def add_result(self, seq: int, status: int, data: bytes, fds: tuple[int, ...], more: bool, now: float) -> None:
        """An input has ended; takes over the descriptors. With `more` inputs at hand the result may wait a moment."""
        with self._lock:
            if self._items:
                self._flush()
            results = self._results
            if results and (
                self._bytes + len(data) > FRAME_BYTES
                or len(results) >= FRAME_VALUES
                or len(self._result_fds) + len(fds) > FRAME_DESCRIPTORS
            ):
                self._flush()
                results = self._results
            results.append(messages.Result(seq, status, data, len(fds)))
            self._bytes += len(data) + 16
            if fds:
                self._result_fds.extend(fds)
            if more and now - self._last < HOLD_SECONDS:
                if self._thread_done is None:
                    self._start_thread()
            else:
                self._flush()

    def add_item(self, seq: int, position: int, payload: Payload, now: float) -> None:
        """A generator has yielded; takes over the payload's descriptors."""
        data, fds = payload.data, payload.fds
        with self._lock:
            if self._items and (
                seq != self._item_seq
                or self._bytes + len(data) > FRAME_BYTES
                or len(self._item_fds) + len(fds) > FRAME_DESCRIPTORS
            ):
                self._flush()
            if not self._items:
                self._item_seq, self._first_item = seq, position
            self._items.append(data)
            self._item_counts.append(len(fds))
            self._item_fds.extend(fds)
            self._bytes += len(data) + 16
            if now - self._last < HOLD_SECONDS:
                if self._thread_done is None:
                    self._start_thread()
            else:
                self._flush()

    def add_text(self, seq: int, stream: Literal["stdout", "stderr"], text: str, urgent: bool) -> None:
        """User code has printed; without `urgent` the text may wait a moment. At most `TEXT_LENGTH`
        characters, no lone surrogates."""
        with self._lock:
            last = self._texts[-1] if self._texts else None
            if last is None or last.seq != seq or last.stream != stream or last.length + len(text) > TEXT_LENGTH:
                last = _Text(seq, stream)
                self._texts.append(last)
            last.parts.append(text)
            last.length += len(text)
            self._bytes += len(text)
            if urgent or self._bytes > FRAME_BYTES:
                self._flush()
            elif self._thread_done is None:
                self._start_thread()

    def flush(self) -> None:
        """Sends all that is held back."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._sending:
            return  # a signal handler came in between: the flush it interrupted takes its words along
        connection = self.connection
        if connection is None or connection.closed:
            self._texts.clear()
            return
        if connection.is_sending:
            if self._thread_done is None:
                self._start_thread()
            return
        self._sending = True
        try:
            while self._texts:
                texts, self._texts = self._texts, []
                for text in texts:
                    connection.send(messages.Print(text.seq, text.stream, "".join(text.parts)))
            if self._items:
                items, counts, fds = self._items, self._item_counts, self._item_fds
                first, self._first_item = self._first_item, self._first_item + len(items)
                self._items, self._item_counts, self._item_fds = [], [], []
                try:
                    connection.send(messages.RunnerItems(self._item_seq, first, items, counts if fds else []), fds)
                finally:
                    descriptors.close_all(fds)
            while self._results:
                self._send_results(connection)
            self._bytes = 0
            self._last = monotonic()
        except ConnectionLostError:
            pass  # the main loop sees that too, and waits for another connection
        finally:
            self._sending = False

    def _send_results(self, connection: RunnerConnection) -> None:
        size = count = descriptor_count = 0
        for result in self._results:
            size += len(result.data) + 16
            descriptor_count += result.descriptors
            if count and (size > FRAME_BYTES or count >= FRAME_VALUES or descriptor_count > FRAME_DESCRIPTORS):
                descriptor_count -= result.descriptors
                break
            count += 1
        # Taken off the list only when sent: if the connection is lost, the next worker wants to know how these ended.
        connection.send(messages.Results(self._results[:count]), self._result_fds[:descriptor_count])
        descriptors.close_all(self._result_fds[:descriptor_count])
        del self._results[:count], self._result_fds[:descriptor_count]

    def reconnect(self, connection: RunnerConnection) -> None:
        """Goes on over another connection, for which only results are of interest."""
        with self._lock:
            descriptors.close_all(self._item_fds)
            self._items, self._item_counts, self._item_fds, self._texts = [], [], [], []
            self.connection = connection
            self._flush()

    # --- the thread

    def _start_thread(self) -> None:
        self._stop_thread = False
        self._thread_done = done = _thread.allocate_lock()
        done.acquire()
        try:
            _thread.start_new_thread(self._send_late, (done,))
        except RuntimeError:  # no more threads can be started: then nothing is held back
            self._thread_done = None
            self._flush()

    def _send_late(self, done: _thread.LockType) -> None:
        pause = _thread.allocate_lock()
        pause.acquire()
        quiet = 0
        try:
            while quiet < QUIET_ROUNDS:
                pause.acquire(timeout=LATE_SECONDS)
                with self._lock:
                    if self._stop_thread:
                        break
                    if not (self._results or self._items or self._texts):
                        quiet += 1
                        if quiet == QUIET_ROUNDS:
                            self._thread_done = None
                        continue
                    quiet = 0
                    if monotonic() - self._last >= HOLD_SECONDS:
                        self._flush()
        finally:
            done.release()

    # --- forks

    def before_fork(self) -> None:
        """The child gets nothing to send, and no thread of ours and no lock that somebody holds."""
        self.flush()
        done = self._thread_done
        if done is not None:
            self._stop_thread = True
            done.acquire()
            self._thread_done = None
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Undoes `before_fork`."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """The parent sends; this process never does."""
        self.connection = None
        self._lock = threading.RLock()
        descriptors.close_all(self._result_fds + self._item_fds)
        self._results, self._result_fds, self._texts = [], [], []
        self._items, self._item_counts, self._item_fds = [], [], []
