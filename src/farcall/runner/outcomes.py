"""How inputs end: what the runner answers for a value, an exception, and an input that was stopped."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, NoReturn

import msgspec

from farcall.errors import FarcallError, InvalidError
from farcall.runner.inbox import Input
from farcall.sdk.exceptions_codec import dump_exception
from farcall.sdk.values import Payload
from farcall.wire import messages
from farcall.wire.page import SharedPage

Outcome = tuple[int, Payload]
"""Status and value of a result."""

NOT_VALUES = frozenset({GeneratorType, AsyncGeneratorType, CoroutineType})
NOTHING = Payload(b"")


class Outcomes:
    """Makes the outcomes of one function's inputs."""

    def __init__(self, container_id: str) -> None:
        self.container_id = container_id
        self.name = ""  # of the function, for people
        self.result_name = "result"  # the same of what it returns
        self.timeout = 0.0  # seconds

    def describe(self, name: str, timeout: float) -> None:
        """What is loaded, and how long an attempt may take."""
        self.name, self.timeout = name, timeout
        self.result_name = f"result of {name}"

    def stopped(self, each: Input, reason: int, started: bool = True) -> Outcome:
        """The outcome of an input that was stopped for that reason."""
        if reason == SharedPage.REVOKED:
            return messages.REVOKED, NOTHING
        if reason == SharedPage.TIMED_OUT:
            text = f"{self.name} ran longer than its timeout of {self.timeout:g} s"
            return self._failure(each, "function-timeout", text)
        where = "while it ran" if started else "before it had started"
        return self._failure(each, "input-cancelled", f"the input of {self.name} was cancelled {where}", started)

    def failed(self, each: Input, error: BaseException) -> Outcome:
        """The outcome of an input whose code raised."""
        try:
            return messages.EXCEPTION, dump_exception(error)
        except Exception:  # no memory, no descriptors: the code that failed may hold them still
            _clear_frames(error)
        try:
            return messages.EXCEPTION, dump_exception(error)
        except Exception as second:
            code = second.code if isinstance(second, FarcallError) else "execution"
            text = f"{type(error).__name__} in {self.name} could not be sent: {type(second).__name__}: {second}"
            return self._failure(each, code, text)

    def unknown(self, each: Input, methods: Iterable[str]) -> Outcome:
        """The outcome of an input for a method that is not there."""
        known = ", ".join(methods)
        return self.failed(each, InvalidError(f"{self.name} has no method {each.method!r}; it has {known}"))

    def no_value(self, value: Any) -> InvalidError:
        """The error of a function that returned a generator and was not declared to."""
        if isinstance(value, GeneratorType):
            value.close()
        return InvalidError(
            f"{self.name} returned a generator and is not declared as one: write `yield` in the function itself, or "
            "declare it with is_generator=True, and call it with .remote_gen(...)"
        )

    def _failure(self, each: Input, code: str, message: str, may_have_run: bool = True) -> Outcome:
        failure = messages.Failure(code, message, each.call_id, self.container_id, may_have_run)
        return messages.PLATFORM_ERROR, Payload(msgspec.msgpack.encode(failure))


def leave_child(error: BaseException | None) -> NoReturn:
    """A child that user code forked has come to the end of the user's code: its parent is the runner, it is not."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


def _clear_frames(error: BaseException) -> None:
    """Lets go of what the frames in the traceback hold. Frames that still run keep theirs."""
    entry = error.__traceback__
    while entry is not None:
        try:
            entry.tb_frame.clear()
        except RuntimeError:
            pass
        entry = entry.tb_next
