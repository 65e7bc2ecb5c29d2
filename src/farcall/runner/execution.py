"""Running inputs: what is common to all, plain functions and generators. Asynchronous ones are in `loop`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from time import monotonic
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from farcall.errors import FarcallError, InvalidError
from farcall.runner.cancellation import Cancellation
from farcall.runner.inbox import Inbox, Input
from farcall.runner.loading import Target
from farcall.runner.outbox import SHORT_INPUTS, SHORT_SECONDS, Outbox
from farcall.runner.output import Output
from farcall.sdk import context, shared_memory
from farcall.sdk.exceptions_codec import dump_exception
from farcall.sdk.values import Payload, dumps, loads
from farcall.wire import descriptors, messages
from farcall.wire.page import SharedPage

if TYPE_CHECKING:
    from farcall.runner.channel import RunnerConnection
    from farcall.runner.loop import Loop

POLL_SECONDS = 0.001  # how often, between inputs, the connection is looked at

Outcome = tuple[int, Payload]
"""Status and value of a result."""

_NOT_VALUES = frozenset({GeneratorType, AsyncGeneratorType, CoroutineType})
_NOTHING = Payload(b"")


class Executor:
    """Runs the inputs of the inbox, one at a time, on the main thread."""

    def __init__(self, container_id: str, page: SharedPage, inbox: Inbox, outbox: Outbox) -> None:
        self.container_id = container_id
        self.page = page
        self.inbox = inbox
        self.outbox = outbox
        self.cancellation = Cancellation(page)
        self.output = Output(outbox, self.cancellation.check)
        self.targets: dict[str, Target] = {}
        self.name = ""  # of the function, for people
        self.result_name = "result"  # the same of what it returns
        self.timeout = 0.0  # seconds
        self.in_child = False  # whether this is a process that user code has forked
        self.ended_by = 0  # the signal that ended the container while an input ran
        self._connection: RunnerConnection
        self._loop: Loop | None = None
        self._now = 0.0  # when the last input ended
        self._polled = 0.0
        self._short = 0  # how many short inputs there were in a row

    def use(self, connection: RunnerConnection) -> None:
        """Runs with this connection from now on."""
        self._connection = self.cancellation.connection = connection

    @property
    def halted(self) -> bool:
        """Whether no more inputs are to be started for now."""
        return self.inbox.stopping or self.inbox.lost

    @property
    def loop(self) -> Loop:
        """The event loop of all asynchronous code, made when it is first needed."""
        if self._loop is None:
            from farcall.runner.loop import Loop

            self._loop = Loop(self)
        return self._loop

    @property
    def has_loop(self) -> bool:
        """Whether there has been asynchronous code."""
        return self._loop is not None

    @property
    def connection(self) -> RunnerConnection:
        """The connection to the worker."""
        return self._connection

    def serve(self) -> None:
        """Runs inputs until the runner is to stop or has lost its connection."""
        inbox = self.inbox
        while not (inbox.stopping or inbox.lost):
            if inbox.inputs:
                if self._now - self._polled > POLL_SECONDS:
                    self._polled = self._now
                    self._connection.poll()  # somebody may have cancelled what comes
                    continue
                target = self.targets.get(inbox.inputs[0].method)
                if target is not None and target.is_async:
                    self.loop.serve()
                else:
                    self._run(inbox.inputs.popleft(), target)
            elif self._loop is not None:
                self._loop.serve()  # tasks that user code left behind go on
            else:
                self.rest()
                inbox.waiter.clear()
                if not (inbox.inputs or inbox.stopping or inbox.lost):
                    keeps = bool(shared_memory.kept)
                    if not self._connection.wait(inbox.waiter, shared_memory.KEEP_SECONDS if keeps else None):
                        shared_memory.release_kept()
                    self._now = self._polled = monotonic()

    def rest(self) -> None:
        """There is nothing to run: nothing is held back."""
        self.page.finish()
        context.set_current(None)
        if self.output.dirty:
            self.output.flush()
        self.outbox.flush()

    # --- one input

    def begin(self, each: Input, now: float) -> int:
        """Input `each` starts. Returns why it must not, else 0."""
        seq = each.seq
        inbox = self.inbox
        self.page.start(seq, now)
        inbox.started = inbox.running = self.output.seq = seq
        reason = self.cancellation.begin(seq)
        if inbox.cancelled and seq in inbox.cancelled:
            return reason or SharedPage.CANCELLED
        return reason

    def end(self, each: Input, status: int, value: Payload) -> None:
        """Input `each` has ended like that, unless it was to stop: then it ended so."""
        reason = self.cancellation.end()
        inbox = self.inbox
        if self.output.dirty:
            self.output.flush()
        inbox.running = self.output.seq = 0
        if inbox.cancelled:
            inbox.cancelled.discard(each.seq)
        if not reason:
            self.ended_by = 0
        else:
            value.close()
            if self.ended_by:
                return  # it gets no answer: the signal that ends the container says what became of it
            status, value = self.stopped(each, reason)
        now = monotonic()
        self._short = self._short + 1 if now - self._now < SHORT_SECONDS else 0
        self._now = now
        more = self._short > SHORT_INPUTS and bool(inbox.inputs)
        self.outbox.add_result(each.seq, status, value[0], value[1], more, now)

    def refuse(self, each: Input, reason: int) -> None:
        """Input `each` is not run."""
        descriptors.close_all(each.fds)
        status, value = self.stopped(each, reason, started=False)
        self.end(each, status, value)

    def stopped(self, each: Input, reason: int, started: bool = True) -> Outcome:
        """The outcome of an input that was stopped for that reason."""
        if reason == SharedPage.REVOKED:
            return messages.REVOKED, _NOTHING
        if reason == SharedPage.TIMED_OUT:
            text = f"{self.name} ran longer than its timeout of {self.timeout:g} s"
            return self._failure(each, "function-timeout", text)
        where = "while it ran" if started else "before it had started"
        return self._failure(each, "input-cancelled", f"the input of {self.name} was cancelled {where}", started)

    def _failure(self, each: Input, code: str, message: str, may_have_run: bool = True) -> Outcome:
        failure = messages.Failure(code, message, each.call_id, self.container_id, may_have_run)
        return messages.PLATFORM_ERROR, Payload(msgspec.msgpack.encode(failure))

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

    def unknown(self, each: Input) -> Outcome:
        """The outcome of an input for a method that is not there."""
        return self.failed(
            each, InvalidError(f"{self.name} has no method {each.method!r}; it has {', '.join(self.targets)}")
        )

    def _run(self, each: Input, target: Target | None) -> None:
        reason = self.begin(each, self._now)
        if reason:
            self.refuse(each, reason)
            return
        context.set_current(each.call_id, each.index)
        try:
            if target is None:
                descriptors.close_all(each.fds)
                outcome = self.unknown(each)
            elif target.is_generator:
                outcome = self._stream(each, target.call)
            else:
                outcome = messages.OK, self.enter_user_code(each, target.call)
        except BaseException as error:
            if self.in_child:
                leave_child(error)
            outcome = self.failed(each, error)
        if self.in_child:
            leave_child(None)
        self.end(each, *outcome)

    def enter_user_code(self, each: Input, call: Callable[..., Any]) -> Payload:
        """Runs a plain function. May be left by an InputCancellation at any point."""
        cancellation = self.cancellation
        cancellation.active = True
        try:
            if cancellation.pending:
                cancellation.check()
            args, kwargs = loads(each.data, each.fds)
            value = call(*args, **kwargs)
            if type(value) in _NOT_VALUES:
                value = self._no_value(value)
            return dumps(value, name=self.result_name)
        finally:
            cancellation.active = False

    def _no_value(self, value: Any) -> Any:
        if isinstance(value, CoroutineType):
            # A decorator can hide that a function is asynchronous.
            return self.loop.run(value)
        if isinstance(value, GeneratorType):
            value.close()
        raise InvalidError(
            f"{self.name} returned a generator and is not declared as one: write `yield` in the function itself, or "
            "declare it with is_generator=True, and call it with .remote_gen(...)"
        )

    # --- generators

    def _stream(self, each: Input, call: Callable[..., Any]) -> Outcome:
        inbox, outbox, cancellation = self.inbox, self.outbox, self.cancellation
        inbox.credit = each.credit
        args, kwargs = loads(each.data, each.fds)
        items: Any = None
        count = 0
        try:
            _, items = self.step_user_code(_start, call, args, kwargs)
            del args, kwargs
            while True:
                now = monotonic()
                if now - self._polled > POLL_SECONDS:
                    self._polled = now
                    self._connection.poll()
                if inbox.credit <= 0:
                    self._wait_for_credit(each)
                if each.seq in inbox.cancelled or cancellation.pending or inbox.lost:
                    cancellation.take()
                    return messages.OK, _NOTHING
                more, item = self.step_user_code(_next, items)
                if not more:
                    items = None
                    return messages.GENERATOR_DONE, dumps(count)
                inbox.credit -= 1
                outbox.add_item(each.seq, count, item, monotonic())
                count += 1
        finally:
            if items is not None:
                self._close(items)

    def _wait_for_credit(self, each: Input) -> None:
        inbox = self.inbox
        self.output.flush()
        self.outbox.flush()
        while True:
            inbox.waiter.clear()
            if inbox.credit > 0 or each.seq in inbox.cancelled or self.cancellation.pending or self.halted:
                return
            self._connection.wait(inbox.waiter)

    def _close(self, items: Any) -> None:
        """Runs the generator's `finally` blocks. What they raise is what the input raises, as elsewhere."""
        close = getattr(items, "close", None)
        if close is not None:
            self.step_user_code(close)

    def step_user_code(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """Runs one step of a generator. May be left by an InputCancellation at any point."""
        cancellation = self.cancellation
        cancellation.active = True
        try:
            if cancellation.pending:
                cancellation.check()
            return step(*arguments)
        finally:
            cancellation.active = False


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


def _start(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
    return True, iter(call(*args, **kwargs))


def _next(items: Any) -> tuple[bool, Any]:
    try:
        item = next(items)
    except StopIteration:
        return False, None
    return True, dumps(item, name="item")
