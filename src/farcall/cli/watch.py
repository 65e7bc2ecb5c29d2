"""`farcall run --watch`: a program is run again whenever one of its files is saved.

Each run is a process of its own, so that it begins with nothing of the last one loaded. It tells by a pipe of which
files and folders its images and functions are made. The server stays, and with it templates and what is built.
"""

import glob
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

from watchfiles import Change, DefaultFilter, watch

from farcall.cli.terminal import Style
from farcall.sdk import watched
from farcall.sdk.client import Client, connect_existing

DEBOUNCE = 50  # ms for which changes that come together are taken for one
STEP = 20  # ms without a further change after which they are complete
_LOOK = 500  # ms between two looks whether to stop watching
_STOP_SECONDS = 30.0  # what a run is given to end after an interrupt, and again after a second one

_Counts = Callable[[Change, str], bool]  # whether a change of that path is one of the program


def command() -> list[str]:
    """The command line of this process, without --watch."""
    words = sys.argv[1:]
    start = sys.orig_argv[1 : len(sys.orig_argv) - len(words)]
    words.remove("--watch")  # the first is ours, a later one the program's
    return [sys.executable, *start, *words]


def first_paths(target: str, *, is_module: bool) -> list[str]:
    """What is watched before the program has said what it is made of."""
    if not is_module:
        return [os.path.abspath(target)]
    top = Path.cwd() / target.partition(".")[0]
    return [str(path) for path in (top, top.with_suffix(".py")) if path.exists()]


class Watch:
    """Runs of one program, one after another."""

    def __init__(self, command: list[str], paths: Iterable[str], *, quiet: bool) -> None:
        self._command = command
        self._paths = set(paths)
        self._quiet = quiet
        self._style = Style.of(sys.stderr)
        self._server: Client | None = None
        self._ended_by = signal.SIGINT

    def run(self) -> int:
        """Goes on until it is interrupted; returns the command's status, which is 0 after Ctrl-C."""
        before = {number: signal.signal(number, self._interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
        try:
            while True:
                self._once()
        except KeyboardInterrupt:
            return 0 if self._ended_by == signal.SIGINT else 130
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._ended_by = signal.Signals(number)
        raise KeyboardInterrupt

    def _once(self) -> None:
        """One run, and what follows it up to the change after which to run again."""
        run = _Run(self._command)
        watcher = _Watcher(self._paths, run.started, run.changed)
        followed = len(self._paths)
        try:
            while True:
                word, path = run.words.get()
                if word == "changed":
                    break
                if word == "path":
                    self._paths.add(path)
                if len(self._paths) > followed and run.words.empty():
                    watcher.stop()
                    watcher = _Watcher(self._paths, run.started, run.changed)
                    followed = len(self._paths)
                if word == "ended":
                    self._keep_server()
                    self._say(f"watching {len(self._paths)} files and folders; Ctrl-C ends")
            self._say(f"{_shown(path)} was saved: running again")
        except KeyboardInterrupt:
            run.end(self._ended_by, forward=self._ended_by != signal.SIGINT or not _in_foreground())
            raise
        finally:
            watcher.stop()
        run.end(signal.SIGINT)

    def _keep_server(self) -> None:
        """A server that has a client does not end for being idle."""
        if self._server is None or self._server.connection.closed:
            self._server = connect_existing()

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(self._style.dim(f"farcall: {text}"), file=sys.stderr, flush=True)


class _Run:
    """One process of the program. `words` are what happens, in order: ("path", which) for each file and folder that it
    is made of, ("ended", ""), ("changed", which)."""

    def __init__(self, command: list[str]) -> None:
        self.words: queue.Queue[tuple[str, str]] = queue.Queue()
        self.started = time.time()
        reading, writing = os.pipe()
        environment = {**os.environ, watched.VARIABLE: str(writing)}
        try:
            self._process = subprocess.Popen(command, env=environment, pass_fds=[writing])
        finally:
            os.close(writing)
        for target in (lambda: self._read(reading), self._wait):
            threading.Thread(target=target, name="farcall-watch", daemon=True).start()

    def changed(self, path: str) -> None:
        """A file that the program is made of was saved."""
        self.words.put(("changed", path))

    def _read(self, pipe: int) -> None:
        with open(pipe, "rb") as stream:
            for path in _ended_by_zero(stream.fileno()):
                self.words.put(("path", os.fsdecode(path)))

    def _wait(self) -> None:
        self._process.wait()
        self.words.put(("ended", ""))

    def end(self, number: signal.Signals, *, forward: bool = True) -> None:
        """Has it end as after Ctrl-C, and waits for that. Without `forward` it has been told already, by the terminal.
        Where it takes too long, or Ctrl-C is pressed again, it is told to kill what it is stopping."""
        while self._process.poll() is None:
            try:
                if forward:
                    self._process.send_signal(number)
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                forward = True
            except KeyboardInterrupt:
                forward = not _in_foreground()


class _Watcher:
    """Looks out for changes of some files and folders from the moment `since` (seconds since the epoch) on, and tells
    one of them, the first."""

    def __init__(self, paths: Iterable[str], since: float, changed: Callable[[str], None]) -> None:
        self._since = since
        self._changed = changed
        self._stop = threading.Event()
        folders = {path for path in paths if os.path.isdir(path)}
        files = {path for path in paths if path not in folders}
        # Many editors save by renaming: it is the folder of a file in which that can be seen.
        parents = {os.path.dirname(path) for path in files if os.path.isdir(os.path.dirname(path))}

        def is_ours(change: Change, path: str) -> bool:
            return path in files

        followed: list[tuple[set[str], bool, _Counts]] = [(folders, True, DefaultFilter()), (parents, False, is_ours)]
        for each, recursive, counts in followed:
            if each:
                work = (sorted(each), recursive, counts)
                threading.Thread(target=self._follow, args=work, name="farcall-watch", daemon=True).start()

    def stop(self) -> None:
        """Looks no more."""
        self._stop.set()

    def _follow(self, folders: list[str], recursive: bool, counts: _Counts) -> None:
        missed = False
        for changes in watch(
            *folders,
            watch_filter=counts,
            debounce=DEBOUNCE,
            step=STEP,
            rust_timeout=_LOOK if missed else STEP,
            yield_on_timeout=True,
            stop_event=self._stop,
            raise_interrupt=False,
            recursive=recursive,
            ignore_permission_denied=True,
        ):
            found = sorted(path for _, path in changes)
            if not found and not missed:
                # What changed while the program started, before anybody looked.
                missed = True
                found = list(self._changed_before(folders, recursive, counts))
            if found:
                _forget_compiled(found)
                self._changed(found[0])
                return

    def _changed_before(
        self, folders: list[str], recursive: bool, counts: Callable[[Change, str], bool]
    ) -> Iterator[str]:
        now = time.time()
        for folder in folders:
            for where, below, names in os.walk(folder):
                below[:] = [name for name in below if recursive and counts(Change.modified, os.path.join(where, name))]
                for name in names:
                    path = os.path.join(where, name)
                    try:
                        if counts(Change.modified, path) and self._since < os.stat(path).st_mtime < now:
                            yield path
                    except OSError:
                        continue


def _forget_compiled(paths: Iterable[str]) -> None:
    """What is compiled of a module counts as current if the module has the same size and second of modification: two
    saves within a second can look like one."""
    for path in map(Path, paths):
        if path.suffix == ".py":
            for compiled in path.parent.glob(f"__pycache__/{glob.escape(path.stem)}.*.pyc"):
                compiled.unlink(missing_ok=True)


def _ended_by_zero(fd: int) -> Iterator[bytes]:
    rest = b""
    while data := os.read(fd, 65536):
        *whole, rest = (rest + data).split(b"\0")
        yield from whole


def _shown(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _in_foreground() -> bool:
    """Whether Ctrl-C reaches the program as well, from the terminal that it shares with us."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
