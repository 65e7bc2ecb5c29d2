"""What a test has attempts suffer: made by `fail`, `lose` and `slow`, taken by the attempts in the order of making."""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any, Literal

from farcall.errors import InvalidError

Kind = Literal["raise", "lose", "slow"]


@dataclass(frozen=True)
class Fault:
    """What happens to one attempt."""

    kind: Kind
    error: BaseException | None = None
    after: bool = False
    """Whether the user's code has run when it happens."""
    seconds: float = 0.0

    def exception(self) -> BaseException:
        """A fresh one for each attempt, so that their tracebacks and notes do not add up."""
        assert self.error is not None
        try:
            return copy.copy(self.error)
        except Exception:
            return self.error


class Faults:
    """Those that wait for their attempts, by the function's name."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, deque[Fault]] = defaultdict(deque)

    def add(self, name: str, fault: Fault, times: int) -> None:
        """The next `times` attempts beyond those that have a fault already get this one."""
        check_times(name, times)
        self._waiting[name].extend([fault] * times)

    def take(self, name: str) -> Fault | None:
        """The fault of an attempt that begins."""
        waiting = self._waiting[name]
        return waiting.popleft() if waiting else None

    def left(self) -> dict[str, int]:
        """How many have met no attempt."""
        return {name: len(waiting) for name, waiting in self._waiting.items() if waiting}


def check_times(name: str, times: Any) -> None:
    """Raises InvalidError for what is no number of attempts."""
    if isinstance(times, bool) or not isinstance(times, int) or times < 1:
        raise InvalidError(f"{name}: times={times!r} is no number of attempts; write 1 or more")


def exception(where: str, error: Any) -> BaseException:
    """`error`, an exception or a class of one, as an exception that can be raised in a function."""
    if isinstance(error, type) and issubclass(error, BaseException):
        error = error()
    if not isinstance(error, Exception):
        raise InvalidError(f"{where}: {error!r} is no exception; write an Exception, such as OSError('no route')")
    return error


def name_of(where: str, function: Any) -> str:
    """The name under which an app knows `function`: a function, or a method of a class or of an object of it."""
    if isinstance(function, str):
        return function
    name = getattr(function, "name", None)
    if isinstance(name, str) and hasattr(function, "remote"):
        return name
    raise InvalidError(
        f"{where}: {function!r} is no function of an app; give the decorated function, a method (Model().predict), or "
        'its name ("Model.predict")'
    )
