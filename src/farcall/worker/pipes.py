"""What a container writes to its stdout and stderr past Python: one pipe each, read by the worker."""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import Callable

from farcall.worker.limit import OutputLimit

READ_SIZE = 64 * 1024  # bytes
LINE_LIMIT = 64 * 1024  # characters; a longer line is split
PARTIAL_SECONDS = 0.2  # how long a line without its end is held back


class OutputPipe:
    """Reads one pipe until its end and hands on text, whole lines where there are any.

    A writer over the rate of `OutputLimit` is held: nothing is read for a while, so that it blocks. `on_end` is called
    once, after the last text.
    """

    def __init__(self, fd: int, on_text: Callable[[str], None], on_end: Callable[[], None]) -> None:
        self._fd = fd
        self._on_text = on_text
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._line = ""
        self._partial: asyncio.TimerHandle | None = None
        self._limit = OutputLimit(self._hold, self._release, self._say)
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
        if self._limit.admit(len(data)):
            self._add(self._decode(data))

    def _hold(self) -> None:
        self._loop.remove_reader(self._fd)

    def _release(self) -> None:
        self._loop.add_reader(self._fd, self._readable)

    def _say(self, text: str) -> None:
        self._emit_line()
        self._on_text(text)

    def _add(self, text: str) -> None:
        text = self._line + text
        end = text.rfind("\n") + 1
        whole, self._line = text[:end], text[end:]
        if len(whole) > LINE_LIMIT:
            whole = "\n".join(_split(line) for line in whole.split("\n"))
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
        os.close(self._fd)
        self._fd = -1
        self._limit.close()
        self._line += self._decode(b"", True)
        self._emit_line()
        self._on_end()


def _split(line: str) -> str:
    return "\n".join(line[start : start + LINE_LIMIT] for start in range(0, len(line), LINE_LIMIT))
