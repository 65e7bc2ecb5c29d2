"""The logs of containers: compressed segments on disk, a folder of them for each app, bounded in size."""

import contextlib
import heapq
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from farcall.errors import InvalidError
from farcall.worker.logsegment import (
    LogEntry,
    SegmentIndex,
    SegmentWriter,
    read_index,
    read_segment,
    remove_segment,
)

TOTAL_BYTES = 1024**3
APP_BYTES = 256 * 1024**2
# Reading one call decompresses whole segments, so they are small: some 10 ms each. Size on disk, compressed.
SEGMENT_BYTES = 256 * 1024
FLUSH_SECONDS = 0.5
# Text that waits for a flush: from the first on a flush is asked for at once, at the second lines are dropped.
FLUSH_CHARACTERS = 256 * 1024
PENDING_CHARACTERS = 16 * 1024**2
# Text that goes into a segment in one write, so that segments end near their size.
WRITE_CHARACTERS = 512 * 1024
OPEN_SEGMENTS = 32
DISK_BLOCK = 4096

Schedule = Callable[[float, Callable[[], None]], object]


@dataclass(frozen=True)
class LogStatistics:
    """Counters since the store was opened, and what is on disk."""

    appended: int
    """Entries taken by `append`."""
    written: int
    """Entries written to segments."""
    dropped: int
    """Entries lost to a full disk or to a flood."""
    pending: int
    """Entries that wait for a flush."""
    segments: int
    """Segments on disk."""
    disk_bytes: int
    """What they take up, in whole disk blocks."""


@dataclass
class _Segment:
    path: Path
    modified: float
    size: int  # in whole disk blocks


class _AppLog:
    """The segments of one app, oldest first; the last one may be open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segments: list[_Segment] = []
        self.size = 0
        self.writer: SegmentWriter | None = None
        self.dropped = 0
        self.drop_reason = ""

    def next_path(self) -> Path:
        number = int(self.segments[-1].path.stem) + 1 if self.segments else 1
        return self.folder / f"{number:08}.log"


class LogStore:
    """Keeps log entries under `directory`: at most `total_bytes`, and `app_bytes` for one app; the oldest go first.

    `append` only queues. What is queued is written within half a second by `schedule(delay, flush)`, which is to call
    `flush` after `delay` seconds, best on a thread (it is called, and must not raise, in the thread that appends);
    without one the caller calls `flush`. A kill -9 loses what was not
    flushed and nothing else. When the disk is full, entries are dropped, and the app's log says how many once there is
    room. Methods may be called from any thread and raise no OSError; all but `append` block on the disk.
    """

    def __init__(
        self,
        directory: Path,
        *,
        schedule: Schedule | None = None,
        total_bytes: int = TOTAL_BYTES,
        app_bytes: int = APP_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._schedule = schedule
        self._total_bytes = total_bytes
        self._app_bytes = app_bytes
        self._segment_bytes = segment_bytes
        self._now = now
        self._pending_lock = threading.Lock()
        self._pending: list[LogEntry] = []
        self._pending_characters = 0
        self._flush_asked = 0  # 0 no, 1 within half a second, 2 at once
        self._overflow: dict[str, int] = {}
        self._disk_lock = threading.RLock()
        self._apps: dict[str, _AppLog] = {}
        self._unmarked: set[str] = set()  # apps whose log does not yet say what was dropped
        self._size = 0  # of all segments, in whole disk blocks
        self._open: OrderedDict[str, _AppLog] = OrderedDict()  # least recently written first
        self._appended = self._written = self._dropped = 0
        self._scan()

    def append(self, entry: LogEntry) -> None:
        """Queue the entry. Cheap, never blocks on the disk, never raises; a flood that would fill memory is dropped."""
        with self._pending_lock:
            self._appended += 1
            if self._pending_characters >= PENDING_CHARACTERS:
                self._overflow[entry.app_id] = self._overflow.get(entry.app_id, 0) + 1
                return
            self._pending.append(entry)
            self._pending_characters += len(entry.text)
            wanted = 2 if self._pending_characters >= FLUSH_CHARACTERS else 1
            if wanted <= self._flush_asked:
                return
            self._flush_asked = wanted
        if self._schedule is not None:
            self._schedule(FLUSH_SECONDS if wanted == 1 else 0.0, self.flush)

    def flush(self) -> None:
        """Write what is queued. Returns once it would survive a kill -9 of this process (not a power cut)."""
        with self._disk_lock:
            with self._pending_lock:
                pending, self._pending = self._pending, []
                overflow, self._overflow = self._overflow, {}
                self._pending_characters = 0
                self._flush_asked = 0
            by_app: dict[str, list[LogEntry]] = {}
            for entry in pending:
                by_app.setdefault(entry.app_id, []).append(entry)
            for app_id, count in overflow.items():
                self._drop(app_id, self._app(app_id), count, "more was written than the disk could take")
            for app_id in self._unmarked - by_app.keys():
                by_app[app_id] = []
            for app_id, entries in by_app.items():
                self._write(app_id, entries)
            self._enforce_total()

    def close(self) -> None:
        """Flush, and close the segments with their indexes. Entries appended later are written by the next flush."""
        with self._disk_lock:
            self.flush()
            for app_id in list(self._open):
                self._close_segment(app_id)

    def read(
        self,
        ref: str | None = None,
        *,
        since: float | None = None,
        until: float | None = None,
        grep: str | None = None,
        failed_calls: Set[str] | None = None,
        function: str | None = None,
        tail: int | None = None,
    ) -> Iterator[LogEntry]:
        """The entries that match all that is given, in the order of writing within an app, by time between apps.

        `ref` is the id of an app, a call or a container; `since` (inclusive) and `until` (exclusive) are times in
        seconds since the epoch; `grep` is a regular expression to be found in the text; `failed_calls` are the ids of
        the only calls to show; `tail` keeps the last so many. What has been appended by now is included. Raises
        InvalidError for a `grep` that is not a regular expression and for a negative `tail`.
        """
        try:
            pattern = re.compile(grep) if grep is not None else None
        except re.error as error:
            raise InvalidError(
                f"{grep!r} is not a regular expression: {error}. Escape special characters with \\."
            ) from None
        if tail is not None and tail < 0:
            raise InvalidError(f"tail={tail}: the number of entries to show cannot be negative.")
        query = _Query(ref, since, until, pattern, failed_calls, function)
        self.flush()
        with self._disk_lock:
            apps = [self._apps[ref]] if ref in self._apps else list(self._apps.values())
            if ref in self._apps:
                query.ref = None
            paths = [[segment.path for segment in app.segments] for app in apps]
        if tail is None:
            return heapq.merge(*map(query.entries, paths), key=_time)
        tails = [query.tail(segments, tail) for segments in paths]
        merged = list(heapq.merge(*tails, key=_time))
        return iter(merged[len(merged) - tail :] if len(merged) > tail else merged)

    def statistics(self) -> LogStatistics:
        with self._disk_lock, self._pending_lock:
            return LogStatistics(
                appended=self._appended,
                written=self._written,
                dropped=self._dropped + sum(self._overflow.values()),
                pending=len(self._pending),
                segments=sum(len(app.segments) for app in self._apps.values()),
                disk_bytes=self._size,
            )

    def _scan(self) -> None:
        """Find the segments that earlier processes have left."""
        for folder in _listed(self._directory):
            app = _AppLog(folder)
            for path in sorted(_listed(folder)):
                if path.suffix != ".log" or not path.stem.isdecimal():
                    continue
                with contextlib.suppress(OSError):
                    app.segments.append(_Segment(path, path.stat().st_mtime, _disk_bytes(path)))
            if app.segments:
                app.size = sum(segment.size for segment in app.segments)
                self._size += app.size
                self._apps[_app_id(folder.name)] = app

    def _app(self, app_id: str) -> _AppLog:
        app = self._apps.get(app_id)
        if app is None:
            app = self._apps[app_id] = _AppLog(self._directory / _folder_name(app_id))
        return app

    def _write(self, app_id: str, entries: list[LogEntry]) -> None:
        app = self._app(app_id)
        for part in _parts(entries):
            # The marker goes with what follows it: alone it would fit, again and again, where nothing else does.
            marker = [self._marker(app_id, app)] if app.dropped else []
            try:
                self._write_part(app_id, app, marker + part)
            except OSError as error:
                self._close_segment(app_id)
                self._drop(app_id, app, len(part), str(error))
                continue
            self._written += len(part)
            if marker:
                app.dropped = 0
                self._unmarked.discard(app_id)
        while app.size > self._app_bytes and self._drop_oldest(app):
            pass

    def _write_part(self, app_id: str, app: _AppLog, part: list[LogEntry]) -> None:
        writer = app.writer
        if writer is None:
            app.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            writer = app.writer = SegmentWriter(app.next_path())
            app.segments.append(_Segment(writer.path, self._now(), 0))
            self._open[app_id] = app
        self._open.move_to_end(app_id)
        writer.write(part)
        app.segments[-1].modified = self._now()
        self._resize(app, _blocks(writer.size))
        if writer.size >= self._segment_bytes:
            self._close_segment(app_id)
        while len(self._open) > OPEN_SEGMENTS:
            self._close_segment(next(iter(self._open)))

    def _close_segment(self, app_id: str) -> None:
        app = self._open.pop(app_id, None)
        if app is None or app.writer is None:
            return
        app.writer.close()
        if app.writer.size:
            self._resize(app, _disk_bytes(app.writer.path))
        else:
            app.segments.pop()
        app.writer = None

    def _resize(self, app: _AppLog, size: int) -> None:
        """The app's newest segment has this size now."""
        change = size - app.segments[-1].size
        app.segments[-1].size = size
        app.size += change
        self._size += change

    def _drop(self, app_id: str, app: _AppLog, count: int, reason: str) -> None:
        self._unmarked.add(app_id)
        app.dropped += count
        app.drop_reason = reason
        self._dropped += count

    def _marker(self, app_id: str, app: _AppLog) -> LogEntry:
        text = f"farcall: {app.dropped} log lines are missing here ({app.drop_reason})"
        return LogEntry(self._now(), app_id, "", "", -1, "", "system", text)

    def _enforce_total(self) -> None:
        while self._size > self._total_bytes:
            closed = [app for app in self._apps.values() if len(app.segments) > (app.writer is not None)]
            if not closed:
                return
            self._drop_oldest(min(closed, key=lambda app: app.segments[0].modified))

    def _drop_oldest(self, app: _AppLog) -> bool:
        """Remove the app's oldest segment; False when there is none but the open one."""
        if len(app.segments) <= (app.writer is not None):
            return False
        segment = app.segments.pop(0)
        app.size -= segment.size
        self._size -= segment.size
        remove_segment(segment.path)
        if not app.segments:
            with contextlib.suppress(OSError):
                app.folder.rmdir()
            if not app.dropped:
                self._apps.pop(_app_id(app.folder.name), None)
        return True


@dataclass
class _Query:
    ref: str | None
    since: float | None
    until: float | None
    pattern: re.Pattern[str] | None
    failed_calls: Set[str] | None
    function: str | None

    def entries(self, segments: Iterable[Path]) -> Iterator[LogEntry]:
        for path in segments:
            index = read_index(path)
            if index is None or self._may_match(index):
                yield from filter(self._matches, read_segment(path))

    def tail(self, segments: list[Path], count: int) -> list[LogEntry]:
        """The last `count` matches, reading no more segments than it takes."""
        found: list[LogEntry] = []
        for path in reversed(segments):
            if len(found) >= count:
                break
            found = [*deque(self.entries([path]), maxlen=count - len(found)), *found]
        return found

    def _may_match(self, index: SegmentIndex) -> bool:
        if self.since is not None and index.max_time < self.since:
            return False
        if self.until is not None and index.min_time >= self.until:
            return False
        if self.ref is not None and not index.may_contain(self.ref):
            return False
        if self.function is not None and not index.may_contain(self.function):
            return False
        return self.failed_calls is None or any(map(index.may_contain, self.failed_calls))

    def _matches(self, entry: LogEntry) -> bool:
        return (
            (self.ref is None or self.ref in (entry.call_id, entry.container_id))
            and (self.since is None or entry.time >= self.since)
            and (self.until is None or entry.time < self.until)
            and (self.function is None or entry.function == self.function)
            and (self.failed_calls is None or entry.call_id in self.failed_calls)
            and (self.pattern is None or self.pattern.search(entry.text) is not None)
        )


def _time(entry: LogEntry) -> float:
    return entry.time


def _parts(entries: list[LogEntry]) -> Iterator[list[LogEntry]]:
    """The entries in writes of a bounded size; one empty write when there are none."""
    part: list[LogEntry] = []
    characters = 0
    for entry in entries:
        part.append(entry)
        characters += len(entry.text)
        if characters >= WRITE_CHARACTERS:
            yield part
            part, characters = [], 0
    if part or not entries:
        yield part


def _folder_name(app_id: str) -> str:
    """The id, with what could mean something to the filesystem escaped."""
    return re.sub(r"[^A-Za-z0-9-]", lambda match: f"_{ord(match[0]):x}_", app_id) or "_"


def _app_id(folder_name: str) -> str:
    return "" if folder_name == "_" else re.sub(r"_([0-9a-f]+)_", lambda match: chr(int(match[1], 16)), folder_name)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _blocks(size: int) -> int:
    return -(-size // DISK_BLOCK) * DISK_BLOCK


def _disk_bytes(path: Path) -> int:
    """What a closed segment and its index take up."""
    total = 0
    for file in (path, path.with_suffix(".idx")):
        with contextlib.suppress(OSError):
            total += _blocks(file.stat().st_size)
    return total
