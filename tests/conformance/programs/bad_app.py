"""What the tests of bad input call."""

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import farcall

app = farcall.App("bad")


@app.cls(max_containers=1)
class Bystander:
    """Another container, which nothing may disturb."""

    @farcall.enter()
    def begin(self) -> None:
        self.count = 0

    @farcall.method()
    def next(self) -> int:
        self.count += 1
        return self.count


@app.function()
def echo(value: Any) -> Any:
    return value


@app.function()
def floods() -> Iterator[int]:
    from farcall.sdk import client
    from farcall.wire import messages

    yield 0
    for first in range(1, 10_000, 100):
        client.current().connection.send(messages.RunnerItems(1, first, [b"\x80\x05K\x01."] * 100, []))
    time.sleep(60)


@app.function()
def unpicklable_result() -> Any:
    return [threading.Lock()]


class HostilePickle:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


class HostileUnpickle:
    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    raise RuntimeError("it explodes when it is rebuilt")


class ExitingUnpickle:
    def __reduce__(self) -> Any:
        return sys.exit, (5,)


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")


@app.function()
def raise_hostile() -> None:
    raise HostileError


@app.function()
def raise_exiting() -> None:
    error = ValueError("it carries a bomb")
    error.bomb = ExitingUnpickle()  # type: ignore[attr-defined]
    raise error


@app.function()
def hostile_result() -> Any:
    return HostilePickle()


@app.function()
def exiting_result() -> Any:
    return ExitingUnpickle()


@app.function()
def exploding_result() -> Any:
    return HostileUnpickle()


@app.function()
def exit_with(code: Any) -> None:
    sys.exit(code)


@app.function()
def exit_in_thread() -> str:
    thread = threading.Thread(target=sys.exit, args=(3,))
    thread.start()
    thread.join()
    return "goes on"


@app.function()
def leave(code: int) -> None:
    os._exit(code)


@app.function()
def abort() -> None:
    os.abort()


@app.function()
def segfault() -> None:
    ctypes.string_at(0)


@app.function()
def divide_by_zero_in_c() -> None:
    os.kill(os.getpid(), signal.SIGFPE)


@app.function()
def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.function(memory=128)
def eat_memory() -> int:
    kept: list[bytearray] = []
    while True:
        kept.append(bytearray(os.urandom(4096) * 1024))


@app.function(memory=256)
def eat_memory_in_a_child() -> int:
    """The kernel ends the child; its parent goes on."""
    pid = os.fork()
    if pid == 0:
        kept: list[bytearray] = []
        while True:
            kept.append(bytearray(os.urandom(4096) * 1024))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@app.function()
def recurse_forever() -> None:
    _recurse()


def _recurse() -> None:
    _recurse()


@app.function()
def too_many_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    kept: list[Any] = []
    while True:
        kept.append(open("/dev/null"))  # noqa: SIM115


@app.cls(max_containers=1)
class Door:
    """Says whether it was opened."""

    @farcall.enter()
    def begin(self) -> None:
        self.is_open = False

    @farcall.method()
    def open(self) -> None:
        self.is_open = True

    @farcall.method()
    def look(self) -> bool:
        return self.is_open


@app.function()
def print_forever() -> int:
    """Output without a newline, from Python and below it, until the door is opened."""
    opened = threading.Event()

    def watch() -> None:
        while not Door().look.remote():
            time.sleep(0.02)
        opened.set()

    watching = threading.Thread(target=watch)
    watching.start()
    written = 0
    while not opened.is_set():
        sys.stdout.write("x" * 100_000)
        written += os.write(2, b"y" * 60_000)
    watching.join()
    return written


@app.function()
def print_long_lines() -> int:
    for _ in range(3):
        print("z" * 10_000_000)
    return 3


@app.function()
def print_controls() -> None:
    print("\x1b[31mred\x1b[0m \x1b[2J\x1b[10;10Hmoved \x1b]0;title\x07 bell\x07 back\b end")
    sys.stdout.buffer.write(b"not \xff utf-8\n")
    print("nul \0 there")
    print("lone \ud800 surrogate")


@app.cls(max_containers=1)
class Closer:
    @farcall.method()
    def close_output(self) -> None:
        sys.stdout.close()
        os.close(1)
        os.close(2)

    @farcall.method()
    def next(self) -> str:
        return "goes on"


@app.function()
def close_everything() -> None:
    os.closerange(3, 100)


@app.function()
def close_everything_and_wait() -> None:
    os.closerange(3, 100)
    time.sleep(60)


@app.function()
def needs_missing_module() -> None:
    import module_that_is_nowhere  # noqa: F401  # pyright: ignore


@app.function()
def open_missing_file() -> str:
    return open("/there/is/none").read()


@app.function()
def thread_bomb() -> int:
    """Threads count as processes do, and are quicker to make."""
    threading.stack_size(64 * 1024)
    stop = threading.Event()
    count = 0
    try:
        while True:
            threading.Thread(target=stop.wait, daemon=True).start()
            count += 1
    except RuntimeError:
        return count
    finally:
        stop.set()


@app.function()
def leave_children() -> str:
    for _ in range(5):
        if os.fork() == 0:
            os.setsid()
            while True:
                signal.pause()
    return "left"


@app.function()
def stop_self() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
