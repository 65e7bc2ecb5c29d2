"""The platform in this process: what a server does around the attempts of an input, on a clock that a test moves.

One container is simulated for each function, or class and parameters, because inputs run one after another here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from farcall import errors
from farcall.sdk import local
from farcall.sdk.function import registry
from farcall.spec.function import LOSSES
from farcall.testing.clock import Clock
from farcall.testing.faults import Fault, Faults

if TYPE_CHECKING:
    from farcall.sdk.calls import Target
    from farcall.sdk.options import Declaration


@dataclass
class Call:
    """One input that a function was given, and what became of it."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attempts: int = 0
    delays: list[float] = field(default_factory=list[float])
    """Seconds between one attempt and the next."""
    result: Any = None
    error: BaseException | None = None
    """What its caller was raised."""


@dataclass
class _Container:
    last_used: float
    window: float  # seconds it may be idle
    stays: bool  # for longer, too
    busy: int = 0


class Simulation:
    """Containers, attempts and faults of one run. May be called from any thread."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._faults = Faults()
        self._calls: list[Call] = []
        self._starts: list[str] = []
        """The names of what containers were started for, in that order."""
        self._start_seconds: dict[str, float] = {}
        self._fakes: dict[str, Callable[..., Any]] = {}
        self._containers: dict[tuple[str, bytes], _Container] = {}
        self._lock = threading.RLock()
        clock.on_move(self._scale_down)

    def attempts(self, target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> local.Attempts:
        """Of a new input."""
        return _Attempts(self, target, Call(target.name, tuple(args), dict(kwargs)))

    def start(self, target: Target, declaration: Declaration) -> _Container:
        """The container for an input, started where there is none. Raises StartupTimeoutError."""
        key = target.function_id, target.params
        with self._lock:
            container = self._containers.get(key)
            if container is None:
                name = target.name.removesuffix(f".{target.method}") if target.method else target.name
                self._starts.append(name)
                seconds = self._start_seconds.get(name, 0.0)
                self.clock.advance(min(seconds, declaration.startup_timeout))
                if seconds > declaration.startup_timeout:
                    raise errors.StartupTimeoutError(
                        f"{name} was not ready within {declaration.startup_timeout:g} s (startup_timeout)"
                    )
                scaling = declaration.scaling
                container = _Container(self.clock.now(), scaling.scaledown_window, scaling.min_containers > 0)
                self._containers[key] = container
            container.busy += 1
        return container

    def done(self, target: Target, container: _Container, *, single_use: bool, died: bool) -> None:
        """An attempt in it has ended."""
        key = target.function_id, target.params
        with self._lock:
            container.busy -= 1
            container.last_used = self.clock.now()
            if self._containers.get(key) is not container:
                return
            if died:
                del self._containers[key]
                local.drop_instance(*key)
            elif single_use:
                self._end(key)

    def add_fault(self, name: str, fault: Fault, times: int) -> None:
        """The next `times` attempts of a function or method get it."""
        self._faults.add(name, fault, times)

    def take_fault(self, name: str) -> Fault | None:
        """The fault of an attempt that begins."""
        return self._faults.take(name)

    def record(self, call: Call) -> None:
        """An input begins."""
        self._calls.append(call)

    def fake(self, name: str) -> Callable[..., Any] | None:
        """What runs in the place of a function or method."""
        return self._fakes.get(name)

    def left(self) -> dict[str, int]:
        """How many faults have met no attempt, by function or method."""
        return self._faults.left()

    def started(self, name: str) -> int:
        """How many containers were started for a function or class."""
        return self._starts.count(name)

    def slow_starts(self, name: str, seconds: float) -> None:
        """Containers of a function or class take so long to start."""
        self._start_seconds[name] = seconds

    def replace(self, name: str, fake: Callable[..., Any]) -> None:
        """`fake` runs in the place of a function or method."""
        self._fakes[name] = fake

    def inputs(self) -> list[Call]:
        """All inputs so far."""
        return list(self._calls)

    def end_containers(self, name: str) -> None:
        """Ends those of a function or class, with their exit hooks."""
        with self._lock:
            for key in [key for key in self._containers if registry[key[0]].name == name]:
                self._end(key)

    def _scale_down(self) -> None:
        now = self.clock.now()
        with self._lock:
            for key, container in list(self._containers.items()):
                if not container.busy and not container.stays and now - container.last_used >= container.window:
                    self._end(key)

    def _end(self, key: tuple[str, bytes]) -> None:
        del self._containers[key]
        local.end_instance(*key)


class _Attempts:
    """The attempts of one input."""

    def __init__(self, simulation: Simulation, target: Target, call: Call) -> None:
        registered = registry[target.function_id]
        self._simulation = simulation
        self._target = target
        self._call = call
        self._declaration: Declaration = registered.declaration
        self._container: _Container | None = None
        self._fault: Fault | None = None
        self._ready_at: float | None = None
        self._retries = 0
        self._losses = 0
        self._lost = False
        simulation.record(call)

    def __enter__(self) -> _Attempts:
        self._fault, self._ready_at, self._lost = None, None, False
        self._call.attempts += 1
        try:
            self._container = self._simulation.start(self._target, self._declaration)
        except errors.StartupTimeoutError as error:
            self._call.error = error
            raise
        return self

    def ready(self) -> None:
        """The attempt's own time begins."""
        clock = self._simulation.clock
        self._ready_at = clock.now()
        self._fault = fault = self._simulation.take_fault(self._target.name)
        if fault is None:
            return
        if fault.kind == "slow":
            clock.advance(min(fault.seconds, self._declaration.timeout))
            if fault.seconds > self._declaration.timeout:
                raise self._timed_out()
        elif not fault.after:
            self._suffer(fault)

    def instead(self) -> Callable[..., Any] | None:
        """What the test put in the function's place."""
        return self._simulation.fake(self._target.name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        container, self._container = self._container, None
        if container is None:
            return
        ending = error
        try:
            if self._ready_at is not None and (error is None or isinstance(error, Exception)):
                if self._simulation.clock.now() - self._ready_at > self._declaration.timeout:
                    if not isinstance(error, errors.FunctionTimeoutError):
                        ending = self._timed_out()
                        raise ending from error
                elif error is None and self._fault is not None and self._fault.after:
                    self._suffer(self._fault)
        except Exception as raised:
            ending = raised
            raise
        finally:
            died = (
                self._lost
                or self._ready_at is None  # an enter hook failed
                or isinstance(ending, errors.ContainerCrashedError | errors.FunctionTimeoutError)
            )
            self._simulation.done(
                self._target,
                container,
                single_use=self._declaration.single_use_containers,
                died=died and ending is not None,
            )
            if ending is not None:
                self._call.error = ending

    def _suffer(self, fault: Fault) -> None:
        self._lost = fault.kind == "lose"
        raise fault.exception()

    def _timed_out(self) -> errors.FunctionTimeoutError:
        return errors.FunctionTimeoutError(
            f"{self._target.name} ran longer than its timeout of {self._declaration.timeout:g} s"
        )

    def returned(self, value: Any) -> None:
        """The input is done."""
        self._call.result, self._call.error = value, None

    def again(self, error: Exception) -> bool:
        """As the server decides it: what the function did spends the retry budget, the loss of its machine does not."""
        if self._ready_at is None:
            return False  # a container that cannot start fails who waits for it
        if self._lost:
            self._losses += 1
            if self._losses <= LOSSES:
                self._call.delays.append(0.0)
                return True
            failure = errors.ContainerCrashedError(
                f"the container of {self._target.name} was lost {self._losses} times in a row"
            )
            self._call.error = failure
            raise failure from None
        policy = self._declaration.retries
        if self._retries >= policy.max_retries:
            if self._call.attempts > 1:
                error.add_note(f"after {self._call.attempts} attempts")
            return False
        self._retries += 1
        self._losses = 0
        delay = policy.delay(self._retries)
        self._call.delays.append(delay)
        self._simulation.clock.advance(delay)
        return True
