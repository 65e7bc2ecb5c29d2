"""sys.stdout and sys.stderr of user code: text goes to the worker with the input that printed it.

What is written below Python (`sys.stdout.buffer`, descriptor 1, programs that user code starts) goes through the pipe.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal, TextIO, cast

from farcall.runner.outbox import TEXT_LENGTH, Outbox

GATHER = 8 * 1024  # characters after which text does not wait for the end of its line,
GATHER_SECONDS = 0.5  # and after which the next text takes along what waits for it
URGENT_LINES = 32  # lines that are sent at once, in each span of URGENT_SECONDS; more of them travel together
URGENT_SECONDS = 0.01
RATE = 8 * 1024 * 1024  # characters a second
BURST = 16 * 1024 * 1024  # characters
HOLD_SECONDS = 1.0  # how long a writer over the rate is held before output is dropped


class Limit:
    """Keeps output to a rate: `admit` holds a writer who exceeds it, for a second; if it goes on, output is dropped
    until the writer is within the rate for as long."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._tokens = float(BURST)
        self._then = clock()
        self._held = False
        self._dropping = False
        self.dropped = 0  # characters, since the last marker

    def admit(self, length: int) -> bool:
        """Whether text of this length may be sent."""
        self._refill()
        if self._dropping:
            if self._tokens < RATE:
                self.dropped += length
                return False
            self._dropping = False
        elif self._tokens < length:
            if not self._held:
                self._held = True
                self._sleep(HOLD_SECONDS)
                self._refill()
            if self._tokens < length:
                self._dropping = True
                self.dropped += length
                return False
        self._tokens -= length
        return True

    def _refill(self) -> None:
        now = self._clock()
        self._tokens += (now - self._then) * RATE
        self._then = now
        if self._tokens >= BURST:
            self._tokens = float(BURST)
            self._held = False


current_seq: ContextVar[int] = ContextVar("farcall_current_seq", default=0)
"""The input that this thread or task runs for, where inputs run beside each other."""


class Output:
    """Both streams of this process. Text belongs to the input `seq`, or, once `divided`, to `current_seq`."""

    def __init__(self, outbox: Outbox, check: Callable[[], None]) -> None:
        self.outbox = outbox
        self.check = check  # called after each write; may raise
        self.seq = 0
        self.divided = False
        self.dirty = False  # whether a stream holds text
        self.limit = Limit()
        self.dropping: Literal["stdout", "stderr"] = "stdout"  # where output was dropped last
        self.stdout = Stream(self, "stdout", 1)
        self.stderr = Stream(self, "stderr", 2)

    def install(self) -> None:
        """Makes them the interpreter's."""
        sys.stdout = sys.__stdout__ = cast("TextIO", self.stdout)
        sys.stderr = sys.__stderr__ = cast("TextIO", self.stderr)

    def divide(self) -> None:
        """From now on inputs run beside each other."""
        self.flush()
        self.divided = True

    def flush(self) -> None:
        """Hands what the streams hold to the outbox."""
        self.dirty = False
        self.stdout.flush_all()
        self.stderr.flush_all()
        self.tell_dropped(self.seq)

    def flush_input(self, seq: int) -> None:
        """Hands what the streams hold of this input to the outbox."""
        self.stdout.flush_input(seq)
        self.stderr.flush_input(seq)
        self.tell_dropped(seq)

    def tell_dropped(self, seq: int) -> None:
        """Says in the output how much is missing there, if anything."""
        if self.limit.dropped:
            count, self.limit.dropped = self.limit.dropped, 0
            note = f"\n[farcall: {count:,} characters of output dropped: more than {RATE // 2**20} MiB/s]\n"
            self.outbox.add_text(seq, self.dropping, note, False)

    def use_descriptors(self) -> None:
        """After a fork, in the child: writes go to the descriptors, which are shared with the parent's."""
        self.stdout.use_descriptor()
        self.stderr.use_descriptor()


class _Held:
    """Text that waits for the end of its line."""

    __slots__ = ("length", "parts", "since")

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.length = 0
        self.since = 0.0  # when the first of the parts came

    def take(self) -> str:
        parts, self.parts, self.length = self.parts, [], 0
        return "".join(parts) if len(parts) != 1 else parts[0]


class Stream(io.TextIOBase):
    """A text stream that sends whole lines, each with the input that wrote it."""

    def __init__(self, output: Output, name: Literal["stdout", "stderr"], fd: int) -> None:
        super().__init__()
        self._output = output
        self._stream: Literal["stdout", "stderr"] = name
        self._fd = fd
        self._lock = threading.RLock()
        self._held = _Held()
        self._divided: dict[int, _Held] = {}  # by input, where inputs run beside each other
        self._window = 0.0
        self._lines = 0
        self._direct = False
        self._buffer: io.BufferedIOBase | None = None
        self.mode = "w"

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As of the interpreter's own stream."""
        return f"<{self._stream}>"

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Always UTF-8."""
        return "utf-8"

    @property
    def errors(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Lone surrogates are escaped."""
        return "backslashreplace"

    @property
    def line_buffering(self) -> bool:
        """Lines are not held back."""
        return True

    @property
    def write_through(self) -> bool:
        """Text without its end of line may be held back."""
        return False

    @property
    def buffer(self) -> io.BufferedIOBase:
        """The stream of bytes below: the descriptor. What it writes carries no input."""
        if self._buffer is None:
            self._buffer = _Bytes(self, self._fd)
        return self._buffer

    def reconfigure(self, **options: Any) -> None:
        """Accepted, as programs call it; encoding and buffering stay what they are."""

    def fileno(self) -> int:
        """1 or 2."""
        return self._fd

    def isatty(self) -> bool:
        """False."""
        return False

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, text: str, /) -> int:
        """Takes text; lines are sent."""
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - what a real stream says
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        length = len(text)
        if length:
            if self._direct:
                self._write_descriptor(text)
                return length
            output = self._output
            with self._lock:
                if output.divided:
                    seq = current_seq.get()
                    held = self._divided.get(seq) or self._divided.setdefault(seq, _Held())
                else:
                    seq, held = output.seq, self._held
                held.parts.append(text)
                held.length += length
                output.dirty = True
                if text[-1] == "\n" or "\n" in text or held.length >= GATHER:
                    self._send(seq, held)
                elif held.length == length:
                    held.since = time.monotonic()
                elif time.monotonic() - held.since > GATHER_SECONDS:
                    self._send(seq, held)
                if output.divided and not held.length:
                    del self._divided[seq]
            output.check()
        return length

    def flush(self) -> None:
        """Sends what is held back of the input that this code runs for."""
        if self._direct:
            self._write_descriptor("", whole=True)
        elif self._output.divided:
            self.flush_input(current_seq.get())
        elif self._held.length:
            with self._lock:
                self._send(self._output.seq, self._held, urgent=True)

    def flush_input(self, seq: int) -> None:
        """Sends what is held back of one input, where inputs run beside each other."""
        with self._lock:
            held = self._divided.pop(seq, None)
            if held is not None:
                self._send(seq, held, urgent=True)

    def flush_all(self) -> None:
        """Sends what is held back of all inputs."""
        if self._divided:
            for seq in list(self._divided):
                self.flush_input(seq)
        else:
            self.flush()

    def _send(self, seq: int, held: _Held, urgent: bool = False) -> None:
        text = held.take()
        if not text:
            return
        output = self._output
        if not output.limit.admit(len(text)):
            output.dropping = self._stream
            return
        output.tell_dropped(seq)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                text = text.encode("utf-8", "backslashreplace").decode()
        if not urgent:
            now = time.monotonic()
            if now - self._window > URGENT_SECONDS:
                self._window, self._lines = now, 0
            self._lines += 1
            urgent = self._lines <= URGENT_LINES
        for start in range(0, len(text), TEXT_LENGTH):
            output.outbox.add_text(seq, self._stream, text[start : start + TEXT_LENGTH], urgent)

    # --- below Python

    def use_descriptor(self) -> None:
        """From now on text goes to the descriptor."""
        self._direct = True
        self._lock = threading.RLock()
        self._held, self._divided = _Held(), {}

    def _write_descriptor(self, text: str, whole: bool = False) -> None:
        with self._lock:
            self._held.parts.append(text)
            if not whole and "\n" not in text and len(self._held.parts) < 512:
                return
            data = memoryview(self._held.take().encode("utf-8", "backslashreplace"))
            while data:
                data = data[os.write(self._fd, data) :]


class _Bytes(io.BufferedIOBase):
    """`sys.stdout.buffer`: bytes straight to the descriptor, after the text that was written before them."""

    def __init__(self, stream: Stream, fd: int) -> None:
        super().__init__()
        self._stream = stream
        self._fd = fd
        self.raw = io.FileIO(fd, "w", closefd=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Any, /) -> int:
        self._stream.flush()
        view = memoryview(data).cast("B")
        length = len(view)
        while view:
            view = view[os.write(self._fd, view) :]
        return length

    def flush(self) -> None:
        self._stream.flush()
