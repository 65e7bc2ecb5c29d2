"""One run of an app under test, and what the test does to it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from farcall.errors import InvalidError
from farcall.sdk import local
from farcall.testing.clock import Clock
from farcall.testing.faults import Fault, exception, name_of
from farcall.testing.simulation import Call, Simulation

if TYPE_CHECKING:
    from farcall.sdk.app import App


class Run:
    """An app that runs in this process. Functions are named by themselves (`fetch`), methods as they are called
    (`Model().predict`), or by their names ("Model.predict")."""

    def __init__(self, app: App, clock: Clock) -> None:
        self.app = app
        self.clock = clock
        self._simulation = Simulation(clock)

    # --- what is to happen

    def fail(self, function: Any, error: Any, *, times: int = 1, after: bool = False) -> None:
        """Has the next `times` attempts of `function` raise `error`, an exception or a class of one.

        The user's code does not run in them; with `after` it does, and its result is lost. What `retries=` says is
        done about it. An `errors.ContainerCrashedError` or `OutOfMemoryError` takes the container along: the next
        attempt starts a new one.
        """
        name = self._callable("fail", function)
        self._simulation.faults.add(name, Fault("raise", exception(f"fail({name})", error), after), times)

    def lose(self, function: Any, *, times: int = 1, after: bool = False) -> None:
        """Has the next `times` attempts lose their container through no fault of the function: its machine went away.

        They are tried again at once, without spending retries, up to 8 times in a row. With `after` the user's code
        has run by then: so a test can see whether it may run twice.
        """
        name = self._callable("lose", function)
        self._simulation.faults.add(name, Fault("lose", RuntimeError("the container was lost"), after), times)

    def slow(self, function: Any, seconds: float, *, times: int = 1) -> None:
        """Has the next `times` attempts take `seconds` more on the clock; beyond `timeout=` they fail with
        FunctionTimeoutError, without running the user's code."""
        name = self._callable("slow", function)
        if not seconds >= 0:
            raise InvalidError(f"slow({name}): {seconds!r} is no number of seconds")
        self._simulation.faults.add(name, Fault("slow", seconds=seconds), times)

    def slow_starts(self, function: Any, seconds: float) -> None:
        """Has every container of a function or class take `seconds` on the clock to start; beyond `startup_timeout=`
        its callers get StartupTimeoutError."""
        if not seconds >= 0:
            raise InvalidError(f"slow_starts: {seconds!r} is no number of seconds")
        self._simulation.start_seconds[self._pool("slow_starts", function)] = seconds

    def end_containers(self, function: Any) -> None:
        """Ends the containers of a function or class, after their exit hooks: the next call is a cold start."""
        self._simulation.end_containers(self._pool("end_containers", function))

    def replace(self, function: Any, fake: Callable[..., Any]) -> None:
        """Has `fake` run in the place of `function`, with what it is given (methods: without `self`)."""
        name = self._callable("replace", function)
        if not callable(fake):
            raise InvalidError(f"replace({name}): {fake!r} cannot be called")
        self._simulation.fakes[name] = fake

    # --- what happened

    def calls(self, function: Any = None) -> list[Call]:
        """The inputs so far, in the order in which they began: all, or those of one function."""
        if function is None:
            return list(self._simulation.calls)
        name = self._callable("calls", function)
        return [call for call in self._simulation.calls if call.name == name]

    def starts(self, function: Any) -> int:
        """How many containers were started for a function or class."""
        return self._simulation.starts.count(self._pool("starts", function))

    def check_faults(self) -> None:
        """Raises AssertionError where faults have met no attempt: the test was to see them and did not."""
        left = self._simulation.faults.left()
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
        if type(function).__name__ == "Cls":
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
def run(app: App, *, clock: Clock | None = None) -> Generator[Run]:
    """Runs `app` in this process for the time of a `with` block, on `clock` or a new one that stands at 0.

    Raises AssertionError at its end where faults met no attempt.
    """
    running = Run(app, clock or Clock())
    with local.local_on(running._simulation), app.run():  # pyright: ignore[reportPrivateUsage]
        yield running
        running.check_faults()
