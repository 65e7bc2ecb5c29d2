"""What the tests of values and errors call."""

import os
import signal
import sys
import tempfile
import threading
import uuid
from typing import Any

import farcall

app = farcall.App("values")
IDENTITY = uuid.uuid4().hex  # of the process that imported this module


@app.function()
def echo(value: Any) -> Any:
    return value


@app.function()
def zero(array: Any, start: int, stop: int) -> Any:
    array[start:stop] = 0
    return array


@app.function()
def increment(x: int) -> int:
    return x + 1


@app.function()
def apply(function: Any, *args: Any) -> Any:
    """Calls a plain function, here."""
    return function(*args)


@app.function()
def type_and_value(value: Any) -> tuple[str, str]:
    return type(value).__name__, repr(value)


@app.function()
def digest(data: bytes) -> tuple[int, str]:
    import hashlib

    return len(data), hashlib.sha256(data).hexdigest()


# --- handles


@app.function()
def call_remotely(function: Any, x: Any) -> Any:
    return function.remote(x)


@app.function()
def a_function() -> Any:
    return increment


@app.cls(max_containers=1)
class Counter:
    start: int = farcall.parameter(default=0)

    @farcall.enter()
    def begin(self) -> None:
        self.count = self.start

    @farcall.method()
    def add(self, n: int) -> int:
        self.count += n
        return self.count


@app.function()
def add_to(counter: Any, n: int) -> int:
    return counter.add.remote(n)


@app.function()
def a_counter(start: int) -> Any:
    return Counter(start=start)


@app.function()
def wait_for(call: Any) -> Any:
    return call.get(timeout=20)


@app.function()
def spawn_increment(x: int) -> Any:
    return increment.spawn(x)


# --- exceptions


class RefusedError(Exception):
    """Its constructor takes other arguments than it keeps."""

    def __init__(self, *, reason: str, code: int) -> None:
        super().__init__(f"refused: {reason}")
        self.reason = reason
        self.code = code


class UnrebuildableError(Exception):
    def __reduce__(self) -> Any:
        return _not_here, (self.args,)


def _not_here(args: Any) -> Any:
    if farcall.is_local():
        raise RuntimeError("this cannot be rebuilt outside a container")
    return UnrebuildableError(*args)


def _deep(message: str) -> None:
    raise LookupError(message)  # the line a user looks for


@app.function()
def raise_lookup_error(message: str) -> None:
    _deep(message)


@app.function()
def raise_refused() -> None:
    raise RefusedError(reason="too late", code=7)


@app.function()
def raise_chain() -> None:
    try:
        try:
            int("not a number")
        except ValueError as error:
            error.add_note("noted on the cause")
            raise RefusedError(reason="chained", code=1) from error
    except RefusedError:
        raise KeyError("while handling")  # noqa: B904 - its context is what is tested


@app.function()
def raise_group() -> None:
    raise ExceptionGroup("several", [ValueError("one"), RefusedError(reason="two", code=2)])


@app.function()
def raise_local_class() -> None:
    class OnlyThereError(Exception):
        pass

    raise OnlyThereError("made up here")


@app.function()
def raise_class_of_other_module() -> None:
    folder = tempfile.mkdtemp()
    with open(f"{folder}/made_there.py", "w") as file:
        file.write("class OnlyThereError(Exception): ...\n")
    sys.path.insert(0, folder)
    import made_there  # pyright: ignore[reportMissingImports]

    raise made_there.OnlyThereError("made up there")


@app.function()
def raise_unrebuildable() -> None:
    raise UnrebuildableError("gone")


@app.function()
def raise_message(length: int) -> None:
    raise ValueError("<" + "x" * (length - 2) + ">")


@app.cls(max_containers=1)
class Fragile:
    """All methods run in one container, as long as it lives."""

    @farcall.method()
    def identity(self) -> str:
        return IDENTITY

    @farcall.method()
    def unpicklable_result(self) -> Any:
        return {"fine": 1, "bad": threading.Lock()}

    @farcall.method()
    def unpicklable_exception(self) -> None:
        error = RefusedError(reason="it holds a lock", code=3)
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    @farcall.method()
    def exit(self, code: Any) -> None:
        sys.exit(code)

    @farcall.method()
    def interrupt(self) -> None:
        raise KeyboardInterrupt

    @farcall.method()
    def base_exception(self) -> None:
        class Own(BaseException):
            pass

        raise Own("not an Exception")

    @farcall.method()
    def generator_exit(self) -> None:
        raise GeneratorExit("odd")


# --- ends of containers


@app.function()
def leave(code: int) -> None:
    os._exit(code)


@app.function()
def die_of(number: int) -> None:
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.pause()


@app.function(max_containers=2)
def leave_at(x: int, at: int) -> int:
    if x == at:
        os._exit(9)
    return x


@app.cls()
class FailingEnter:
    @farcall.enter()
    def begin(self) -> None:
        raise RuntimeError("the model is missing")

    @farcall.method()
    def anything(self) -> None: ...


@app.function()
def a_value(unpickled_in: str) -> Any:
    return Traced(unpickled_in)


class Traced:
    """Appends the pid of each process that rebuilds it to a file, in those that see the file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.rebuilt_in_container = not farcall.is_local()
        if os.path.exists(self.path):
            with open(self.path, "a") as file:
                file.write(f"{os.getpid()}\n")


@app.function()
def was_rebuilt_here(value: Traced) -> tuple[bool, bool]:
    return value.rebuilt_in_container, os.path.exists(value.path)
