"""What a run shows: builds of its images, logs of its containers, progress of its maps, why a call waits, how it ended.

The program's own output, and what its containers write to stdout, goes to stdout; everything that is ours goes to
stderr. On a terminal the progress stands below the logs and is drawn in place; without one it is a line now and then.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TextIO

from farcall.cli import signals
from farcall.cli.builds import BuildLines
from farcall.cli.terminal import SharedStream, Style
from farcall.cli.tracebacks import is_ours
from farcall.errors import ImageBuildError
from farcall.sdk.events import AppStats, BuildEnd, BuildStep, CallWaiting, Event, LogLine, MapProgress, Notice

PROGRESS_SHARE = 0.1  # without a terminal, a map's progress is told when it has grown by this share,
PROGRESS_SECONDS = 30.0  # or when this many seconds have passed since it was told
MAX_PARTIAL_LINE = 64 * 1024  # characters; a longer line is shown in pieces
MAX_STATUS_LINES = 5
_MAP_WORTH_PROGRESS = 0.5  # seconds; without a terminal, a map that took less tells its end only
_MAP_WORTH_A_LINE = 1.0  # seconds; on a terminal, a map that took less leaves no line behind

# Everything that moves the cursor, sets titles or rings; not SGR sequences (colour and weight), and not tabs.
_CONTROL = re.compile(
    r"\x1b\[(?![0-9;:]*m)[0-?]*[ -/]*[@-~]?"  # CSI
    r"|\x1b[\]PX^_](?:[^\x07\x1b]|\x1b(?!\\))*(?:\x07|\x1b\\)?"  # OSC, DCS, SOS, PM, APC with their strings
    r"|\x1b(?!\[)[ -/]*[0-~]?"  # other escapes
    r"|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]"
)
_ELAPSED = re.compile(r" \(\d+ s\)$")
_STACK_LINE_BEGIN = re.compile(r"(?: {1,2}| {2}F.*)$")
_STACK_LINE = re.compile(r'  File "([^"]+)", line \d+ in ')
_COLOR = re.compile(r"\x1b\[[0-9;:]*m")


def printable(line: str) -> str:
    """A log line (without its newline) as it may be shown: without control sequences other than colour, without what a
    carriage return would have overwritten, and with an end to its colour."""
    if line.isprintable():
        return line
    # A progress bar redraws its line by carriage returns; one at the very end is Windows' line end.
    kept = line.rstrip("\r").rpartition("\r")[2]
    kept = _CONTROL.sub("", kept)
    colors = _COLOR.findall(kept)
    if colors and colors[-1] not in ("\x1b[m", "\x1b[0m"):
        kept += "\x1b[0m"
    return kept


def _without_controls(text: str) -> str:
    """A piece of a log line without control sequences other than colour and carriage returns."""
    return text if text.isprintable() else "\r".join(_CONTROL.sub("", piece) for piece in text.split("\r"))


def duration(seconds: float) -> str:
    """Seconds for people: "0.8 s", "42 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(number: int, noun: str) -> str:
    """ "1 call", "2 calls"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


_Source = tuple[str, str, str]  # container, stream, function


class _Map:
    """One map on its way."""

    def __init__(self, first: MapProgress, now: float) -> None:
        self.last = first
        self.started = now
        self.told_at = now
        self.told_done = 0
        self.rate_since = (now, first.done)

    def line(self, now: float, containers: int) -> str:
        event = self.last
        elapsed = now - self.started
        total = f"/{event.total:,}" if event.total is not None else ""
        parts = [f"{event.function}: {event.done:,}{total} done"]
        if event.failed:
            parts.append(f"{event.failed:,} failed")
        if event.finished:
            return f"{', '.join(parts)} in {duration(elapsed)}"
        if containers:
            parts.append(count(containers, "container"))
        since, done_then = self.rate_since
        if now - since > 0 and event.done > done_then:
            rate = (event.done - done_then) / (now - since)
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s")
            if event.total is not None and event.total > event.done:
                parts.append(f"{duration((event.total - event.done) / rate)} left")
        return ", ".join(parts)


class Renderer:
    """Shows events; a listener for `farcall.sdk.output`, called from any thread.

    `clock` gives seconds and only ever grows; `width` the terminal's columns. With `quiet` only logs are shown. When a
    stream can no longer be written to, `lost` says why, and `on_lost` is called, once, unless the app is ending
    already: by default that interrupts the main thread.
    """

    def __init__(
        self,
        out: TextIO,
        err: TextIO,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
        width: Callable[[], int] | None = None,
        style: Style | None = None,
        on_lost: Callable[[], object] = signals.interrupt_main,
    ) -> None:
        self._out = out
        self._err = err
        self._quiet = quiet
        self._clock = clock
        self._width = width or _terminal_width
        self._style = style or Style.of(err)
        self._in_place = err.isatty() and not quiet
        self._prefixed = out.isatty()
        self._on_lost = on_lost
        self.lost: OSError | None = None
        self._lost_streams: set[int] = set()
        self._lock = threading.RLock()
        self._partial: dict[_Source, str] = {}
        self._open: dict[int, _Source] = {}  # whose line stands unended on a stream
        self._cut: set[_Source] = set()  # whose line was ended for them
        self._builds = BuildLines(clock, duration, in_place=self._in_place)
        self._printed: set[str] = set()  # titles of the build steps of which there are lines
        self._maps: dict[str, _Map] = {}
        self._waiting: dict[str, CallWaiting] = {}
        self._told: set[tuple[str, str]] = set()
        self._drawn = 0
        self._mid_line = False  # the program itself has printed part of a line
        self._stats: AppStats | None = None
        self._started = clock()
        self._ending_until: float | None = None
        self._show_countdown = False
        self._ticker: threading.Thread | None = None
        self._stop_ticking = threading.Event()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, LogLine):
                self._log(event)
            elif isinstance(event, AppStats):
                self._stats = event
                self._redraw()
            elif isinstance(event, MapProgress):
                self._progress(event)
            elif isinstance(event, BuildStep):
                self._build(event)
            elif isinstance(event, Notice):
                self.say(event.text)
            elif isinstance(event, BuildEnd):
                for line in self._builds.end(event):
                    self.say(line)
                self._redraw()
            else:
                self._wait(event)

    def say(self, text: str) -> None:
        """A line of ours, above the progress. Not shown when quiet."""
        if not self._quiet:
            with self._lock:
                self._write(self._err, f"{text}\n")

    def program_wrote(self, text: str, write: Callable[[str], object]) -> None:
        """The program itself writes to the terminal: the progress makes room for it."""
        with self._lock:
            self._clear()
            write(text)
            if text:
                self._mid_line = not text.endswith("\n")
            self._redraw()

    @contextmanager
    def sharing_terminal(self) -> Generator[None]:
        """For the time of the block, what the program itself prints and the progress below it do not mix."""
        before = sys.stdout, sys.stderr
        if self._in_place:
            streams = [SharedStream(stream, self.program_wrote) if stream.isatty() else stream for stream in before]
            sys.stdout, sys.stderr = streams  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before

    def ending(self, grace: float, *, interrupted: bool) -> None:
        """The app is asked to stop, and its exit hooks have `grace` seconds. Says so at once after an interrupt, else
        when it takes over a second; on a terminal the seconds are counted down."""
        if interrupted and self.lost is None:
            stats = self._stats
            running = count(stats.containers_live, "container") if stats else "the app"
            done = f"; {count(stats.inputs_done, 'call')} had ended" if stats else ""
            self.say(f"interrupted: stopping {running}{done} (again: kill)")
        with self._lock:
            self._ending_until = self._clock() + grace
            self._begin_ticking()

    def ended(self) -> None:
        """The app has stopped."""
        with self._lock:
            self._ending_until = None
            self._stop_ticking.set()
            self._redraw()

    def _begin_ticking(self) -> None:
        """Has what is drawn in place drawn again each second, as long as it says how many have passed."""
        if self._in_place and self._ticker is None:
            self._ticker = threading.Thread(target=self._tick, name="farcall-ticker", daemon=True)
            self._ticker.start()

    def _tick(self) -> None:
        while not self._stop_ticking.wait(1.0):
            with self._lock:
                if self._ending_until is None and not self._builds.active:
                    self._ticker = None
                    return
                self._show_countdown = self._ending_until is not None
                self._redraw()

    def finish(self) -> None:
        """No more logs will come: shows what is left of them and takes the progress away."""
        with self._lock:
            unended = self._partial | dict.fromkeys(self._open.values(), "")
            self._partial = {}
            for source, rest in unended.items():
                if rest or source in self._open.values():
                    self._show_line(source, rest)
            self._clear()
            self._builds.clear()
            self._maps.clear()
            self._waiting.clear()

    def end_line(self, outcome: str = "done") -> str:
        """How it ended: time, calls, containers, and where the time went."""
        text = f"{outcome} in {duration(self._clock() - self._started)}"
        stats = self._stats
        if stats is None:
            return text
        calls = count(stats.inputs_done, "call")
        if stats.inputs_failed:
            calls += f" ({stats.inputs_failed:,} failed)"
        text += f": {calls}, {count(stats.containers_started, 'container')}"
        if stats.containers_started:
            text += f"; {duration(stats.start_seconds)} starting, {duration(stats.run_seconds)} running"
        return text

    # --- logs

    def _log(self, event: LogLine) -> None:
        key = (event.container_id, event.stream, event.function)
        text = self._partial.pop(key, "") + event.text
        lines = text.split("\n")
        rest = lines.pop()
        while len(rest) > MAX_PARTIAL_LINE:
            lines.append(rest[:MAX_PARTIAL_LINE])
            rest = rest[MAX_PARTIAL_LINE:]
        for line in lines:
            self._show_line(key, line)
        if rest:
            self._show_part(key, rest)

    def _show_line(self, source: _Source, line: str) -> None:
        container_id, stream, function = source
        out = self._out if stream == "stdout" else self._err
        if self._open.get(self._place(out)) == source:
            reset = "\x1b[0m" if out.isatty() else ""
            self._write(out, f"{_without_controls(line)}{reset}\n", source)
            del self._open[self._place(out)]
            return
        if source in self._cut:
            self._cut.remove(source)
            if not line:
                return
        if stream == "stderr" and self._hides(line):
            return
        if stream == "system":
            self.say(self._style.dim(f"{function or container_id}: {printable(line)}"))
            return
        self._write(out, f"{self._prefix(function)}{printable(line)}\n")

    def _show_part(self, source: _Source, part: str) -> None:
        """The beginning of a line, or more of it: drawn in place on a terminal, else written as it comes, unless that
        would cut the lines of other containers."""
        _, stream, function = source
        out = self._out if stream == "stdout" else self._err
        place = self._place(out)
        if self._in_place and out.isatty():
            self._partial[source] = part[part.rstrip("\r").rfind("\r") + 1 :]
            self._redraw()
        elif self._open.get(place) == source:
            self._write(out, _without_controls(part), source)
        elif stream == "system" or place in self._open or self._containers() > 1 or _STACK_LINE_BEGIN.match(part):
            self._partial[source] = part
        else:
            self._write(out, self._prefix(function) + _without_controls(part), source)
            self._open[place] = source

    def _prefix(self, function: str) -> str:
        return self._style.dim(f"{function} | ") if self._prefixed and function else ""

    def _place(self, stream: TextIO) -> int:
        """Streams of one place share its unended line."""
        return 0 if stream.isatty() else id(stream)

    def _hides(self, line: str) -> bool:
        """Whether `line` is one of our own frames in a stack that faulthandler has printed."""
        named = _STACK_LINE.match(line)
        return named is not None and is_ours(named[1]) and os.environ.get("FARCALL_TRACEBACK") != "full"

    def tell_once(self, error: BaseException) -> None:
        """An error that is shown next does not repeat what its build step has printed, where that stands above."""
        if isinstance(error, ImageBuildError) and error.last_lines and error.step in self._printed:
            error.args = (str(error).replace(error.last_lines, "; what it printed is above", 1),)

    # --- progress

    def _build(self, event: BuildStep) -> None:
        if event.text and not self._quiet:
            self._printed.add(event.title)
        for kind, line in self._builds.take(event):
            self.say(line if kind == "step" else self._style.dim(f"  {printable(line)}"))
        if self._builds.active:
            self._begin_ticking()
        self._redraw()

    def _progress(self, event: MapProgress) -> None:
        now = self._clock()
        known = self._maps.get(event.call_id)
        if known is None:
            known = self._maps[event.call_id] = _Map(event, now)
        known.last = event
        if event.finished:
            del self._maps[event.call_id]
            if not self._in_place or now - known.started >= _MAP_WORTH_A_LINE:
                self.say(known.line(now, self._containers()))
            self._redraw()
            return
        if self._in_place:
            self._redraw()
            return
        grown = event.total and event.total * PROGRESS_SHARE <= event.done - known.told_done
        if event.done == event.total or now - known.started < _MAP_WORTH_PROGRESS:
            return  # its last line comes in a moment
        if grown or now - known.told_at >= PROGRESS_SECONDS:
            known.told_at, known.told_done = now, event.done
            self.say(known.line(now, self._containers()))

    def _wait(self, event: CallWaiting) -> None:
        if event.reason is None:
            self._waiting.pop(event.call_id, None)
        else:
            self._waiting[event.call_id] = event
            key = (event.function, _ELAPSED.sub("", event.reason))
            if not self._in_place and key not in self._told:
                self._told.add(key)
                self.say(_waiting_line(event))
        self._redraw()

    def _containers(self) -> int:
        return self._stats.containers_live if self._stats else 0

    def _status(self) -> Iterable[str]:
        now = self._clock()
        for (_, stream, function), part in self._partial.items():
            if stream != "system" and (shown := _COLOR.sub("", printable(part))):
                yield f"{function} | {shown}" if function else shown
        yield from self._builds.status()
        for one in self._maps.values():
            yield one.line(now, self._containers())
        for event in self._waiting.values():
            if event.call_id not in self._maps:
                yield _waiting_line(event)
        if self._ending_until is not None and self._show_countdown:
            left = max(self._ending_until - now, 0.0)
            yield f"waiting for containers to end: {left:.0f} s left for their exit hooks (Ctrl-C: kill)"

    def _redraw(self) -> None:
        if not self._in_place:
            return
        self._clear()
        if self._mid_line:
            return
        lines = list(self._status())
        if len(lines) > MAX_STATUS_LINES:
            lines[MAX_STATUS_LINES - 1 :] = [f"and {len(lines) - MAX_STATUS_LINES + 1} more"]
        width = max(self._width() - 1, 10)
        if lines:
            self._put(self._err, "".join(self._style.dim(line[:width]) + "\n" for line in lines))
        self._drawn = len(lines)

    def _clear(self) -> None:
        if self._drawn:
            self._put(self._err, f"\x1b[{self._drawn}A\r\x1b[J")
            self._drawn = 0

    def _write(self, stream: TextIO, text: str, source: _Source | None = None) -> None:
        self._clear()
        unended = self._open.get(self._place(stream))
        if unended is not None and unended != source:
            text = "\n" + text
            self._cut.add(unended)
            del self._open[self._place(stream)]
        if self._mid_line and stream.isatty():
            text = "\n" + text
            self._mid_line = False
        self._put(stream, text)
        self._redraw()

    def _put(self, stream: TextIO, text: str) -> None:
        if id(stream) in self._lost_streams:
            return
        try:
            try:
                stream.write(text)
            except UnicodeEncodeError as error:
                stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
            stream.flush()
        except OSError as error:  # who read it has gone (`| head`), or its disk is full
            self._lost_streams.add(id(stream))
            if self.lost is None:
                self.lost = error
                if self._ending_until is None:
                    self._on_lost()


def _waiting_line(event: CallWaiting) -> str:
    return f"{event.function}: {event.reason}"


def _terminal_width() -> int:
    from shutil import get_terminal_size

    return get_terminal_size().columns
