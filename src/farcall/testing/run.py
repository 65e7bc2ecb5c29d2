"""One run of an app under test, and what the test does to it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from farcall.errors import InvalidError
from farcall.sdk import local
from farcall.sdk.cls import Cls
from farcall.testing.clock import Clock
from farcall.testing.faults import Fault, exception, name_of
from farcall.testing.simulation import Call, Simulation

if TYPE_CHECKING:
    from farcall.sdk.app import App
    from farcall.testing.server import Server


class Platform(Protocol):
    """Where an app under test runs: `Simulation`, or `Containers`. Functions, methods and classes go by their names."""

    clock: Clock

    def add_fault(self, name: str, fault: Fault, times: int) -> None: ...
    def slow_starts(self, name: str, seconds: float) -> None: ...
    def end_containers(self, name: str) -> None: ...
    def replace(self, name: str, fake: Callable[..., Any]) -> None: ...
    def inputs(self) -> list[Call]: ...
    def started(self, name: str) -> int: ...
    def left(self) -> dict[str, int]: ...


class Run:
    """An app under test that runs. Functions are named by themselves (`fetch`), methods as they are called
    (`Model().predict`), or by their names ("Model.predict").

    In containers `slow_starts`, `replace` and `calls` raise UnimplementedError: what they are about is in this process.
    """

    def __init__(self, app: App, platform: Platform) -> None:
        self.app = app
        self.clock = platform.clock
        self._platform = platform

    # --- what is to happen

    def fail(self, function: Any, error: Any, *, times: int = 1, after: bool = False) -> None:
        """Has the next `times` attempts of `function` raise `error`, an exception or a class of one.

        The user's code does not run in them; with `after` it does, and its result is lost. What `retries=` says is
        done about it. An `errors.ContainerCrashedError` or `OutOfMemoryError` takes the container along: the next
        attempt starts a new one.
        """
        name = self._callable("fail", function)
        self._platform.add_fault(name, Fault("raise", exception(f"fail({name})", error), after), times)

    def lose(self, function: Any, *, times: int = 1, after: bool = False) -> None:
        """Has the next `times` attempts lose their container through no fault of the function: its machine went away.

        They are tried again at once, without spending retries, up to 8 times in a row. With `after` the user's code
        has run by then: so a test can see whether it may run twice.
        """
        name = self._callable("lose", function)
        self._platform.add_fault(name, Fault("lose", RuntimeError("the container was lost"), after), times)

    def slow(self, function: Any, seconds: float, *, times: int = 1) -> None:
        """Has the next `times` attempts take `seconds` more on the clock; beyond `timeout=` they fail with
        FunctionTimeoutError, without running the user's code."""
        name = self._callable("slow", function)
        if not seconds >= 0:
            raise InvalidError(f"slow({name}): {seconds!r} is no number of seconds")
        self._platform.add_fault(name, Fault("slow", seconds=seconds), times)

    def slow_starts(self, function: Any, seconds: float) -> None:
        """Has every container of a function or class take `seconds` on the clock to start; beyond `startup_timeout=`
        its callers get StartupTimeoutError."""
        if not seconds >= 0:
            raise InvalidError(f"slow_starts: {seconds!r} is no number of seconds")
        self._platform.slow_starts(self._pool("slow_starts", function), seconds)

    def end_containers(self, function: Any) -> None:
        """Ends the containers of a function or class, after their exit hooks: the next call is a cold start."""
        self._platform.end_containers(self._pool("end_containers", function))

    def replace(self, function: Any, fake: Callable[..., Any]) -> None:
        """Has `fake` run in the place of `function`, with what it is given (methods: without `self`)."""
        name = self._callable("replace", function)
        if not callable(fake):
            raise InvalidError(f"replace({name}): {fake!r} cannot be called")
        self._platform.replace(name, fake)

    # --- what happened

    def calls(self, function: Any = None) -> list[Call]:
        """The inputs so far, in the order in which they began: all, or those of one function."""
        if function is None:
            return self._platform.inputs()
        name = self._callable("calls", function)
        return [call for call in self._platform.inputs() if call.name == name]

    def starts(self, function: Any) -> int:
        """How many containers were started for a function or class."""
        return self._platform.started(self._pool("starts", function))

    def check_faults(self) -> None:
        """Raises AssertionError where faults have met no attempt: the test was to see them and did not."""
        left = self._platform.left()
        if left:
            said = ", ".join(f"{name}: {count}" for name, count in left.items())
            raise AssertionError(f"faults that met no attempt (function: how many): {said}")

    # --- names

    def _callable(self, where: str, function: Any) -> str:
        name = name_of(where, function)
        known = list(self.app.registered_functions)
        for made in self.app.registered_classes.values():
            known += [f"{made.name}.{method}" for method in made.shape.methods]
        return _known(where, name, known)

    def _pool(self, where: str, function: Any) -> str:
        if isinstance(function, Cls):
            function = function.name
        name = name_of(where, function)
        classes = list(self.app.registered_classes)
        if (head := name.rpartition(".")[0]) in classes:
            name = head
        return _known(where, name, [*self.app.registered_functions, *classes])


def _known(where: str, name: str, known: list[str]) -> str:
    if name not in known:
        raise InvalidError(f"{where}: the app has no {name!r}; it has {', '.join(sorted(known)) or 'nothing'}")
    return name


@contextmanager
def run(app: App, *, server: Server | None = None) -> Generator[Run]:
    """Runs `app` for the time of a `with` block: in this process, or in containers of `server`.

    Raises AssertionError at its end where faults met no attempt.
    """
    if server is None:
        simulation = Simulation(Clock())
        with local.local_on(simulation), app.run():
            running = Run(app, simulation)
            yield running
            running.check_faults()
        return
    from farcall.testing.containers import Containers

    with server.serving(), app.run():
        running = Run(app, Containers(app))
        yield running
        running.check_faults()
