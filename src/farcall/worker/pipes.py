"""What a container writes to its stdout and stderr past Python: one pipe each, read by the worker."""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import Callable

READ_SIZE = 64 * 1024  # bytes
LINE_LIMIT = 64 * 1024  # characters; a longer line is split
PARTIAL_SECONDS = 0.2  # how long a line without its end is held back
RATE = 8 * 1024 * 1024  # bytes a second that are kept
BURST = 16 * 1024 * 1024  # bytes
HOLD_SECONDS = 1.0  # how long a writer over the rate is held before its output is dropped


class OutputPipe:
    """Reads one pipe until its end and hands on text, whole lines where there are any.

    A writer over `RATE` is held: nothing is read for `HOLD_SECONDS`, so that it blocks. If it goes on, what it writes
    is read and dropped for as long again, and a line says how much. `on_end` is called once, after the last text.
    """

    def __init__(self, fd: int, on_text: Callable[[str], None], on_end: Callable[[], None]) -> None:
        self._fd = fd
        self._on_text = on_text
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._line = ""
        self._partial: asyncio.TimerHandle | None = None
        self._budget = float(BURST)
        self._counted_at = self._loop.time()
        self._dropping_until = 0.0
        self._dropped = 0
        self._held: asyncio.TimerHandle | None = None
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        now = self._loop.time()
        self._budget = min(BURST, self._budget + (now - self._counted_at) * RATE) - len(data)
        self._counted_at = now
        if self._dropping_until:
            if now < self._dropping_until:
                self._dropped += len(data)
                return
            self._end_dropping()
        if self._budget < 0 and self._held is None:
            self._loop.remove_reader(self._fd)
            self._held = self._loop.call_later(HOLD_SECONDS, self._release)
        self._add(self._decode(data))

    def _release(self) -> None:
        self._held = None
        self._budget = 0.0
        self._counted_at = self._loop.time()
        self._dropping_until = self._counted_at + HOLD_SECONDS
        self._loop.add_reader(self._fd, self._readable)

    def _end_dropping(self) -> None:
        self._dropping_until = 0.0
        if self._dropped:
            self._emit_line()
            self._on_text(f"[farcall: {self._dropped:,} bytes of output dropped: more than {RATE // 2**20} MiB/s]\n")
            self._dropped = 0

    def _add(self, text: str) -> None:
        text = self._line + text
        end = text.rfind("\n") + 1
        whole, self._line = text[:end], text[end:]
        while len(self._line) > LINE_LIMIT:
            whole += self._line[:LINE_LIMIT] + "\n"
            self._line = self._line[LINE_LIMIT:]
        if whole:
            self._on_text(whole)
        if self._line and self._partial is None:
            self._partial = self._loop.call_later(PARTIAL_SECONDS, self._emit_line)

    def _emit_line(self) -> None:
        if self._partial is not None:
            self._partial.cancel()
            self._partial = None
        if self._line:
            line, self._line = self._line, ""
            self._on_text(line)

    def close(self) -> None:
        """Ends reading; what is held back is handed on."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        if self._held is not None:
            self._held.cancel()
        os.close(self._fd)
        self._fd = -1
        self._end_dropping()
        self._line += self._decode(b"", True)
        self._emit_line()
        self._on_end()
