"""Running inputs one at a time, on the main thread. Asynchronous ones are in `loop`, many at once in `concurrency`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from farcall.runner.batches import Batch
from farcall.runner.cancellation import Cancellation
from farcall.runner.inbox import Credit, Inbox, Input
from farcall.runner.loading import Target
from farcall.runner.outbox import SHORT_INPUTS, SHORT_SECONDS, Outbox
from farcall.runner.outcomes import NOT_VALUES, Outcome, Outcomes, leave_child
from farcall.runner.output import Output
from farcall.runner.streams import stream
from farcall.sdk import context, shared_memory
from farcall.sdk.values import Payload, dumps, loads
from farcall.wire import descriptors, messages
from farcall.wire.page import SharedPage

if TYPE_CHECKING:
    from farcall.runner.channel import RunnerConnection
    from farcall.runner.loop import Loop

POLL_SECONDS = 0.001  # how often, between inputs, the connection is looked at


class Executor:
    """Runs the inputs of the inbox, one at a time."""

    def __init__(self, container_id: str, page: SharedPage, inbox: Inbox, outbox: Outbox) -> None:
        self.page = page
        self.inbox = inbox
        self.outbox = outbox
        self.outcomes = Outcomes(container_id)
        self.cancellation = Cancellation(page)
        self.output = Output(outbox, self.cancellation.check)
        self.targets: dict[str, Target] = {}
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
            if inbox.inputs and inbox.inputs[0].batch <= inbox.highest:
                if self._now - self._polled > POLL_SECONDS:
                    self._polled = self._now
                    self._connection.poll()  # somebody may have cancelled what comes
                    continue
                target = self.targets.get(inbox.inputs[0].method)
                if target is not None and target.is_async:
                    self.loop.serve(self)
                elif target is not None and target.batched:
                    self._run_batch(inbox.take_batch(), target)
                else:
                    self._run(inbox.inputs.popleft(), target)
            elif self._loop is not None:
                self._loop.serve(self)  # tasks that user code left behind go on
            else:
                self.rest()
                inbox.waiter.clear()
                if not (inbox.ready or inbox.stopping or inbox.lost):
                    keeps = bool(shared_memory.kept)
                    if not self._connection.wait(inbox.waiter, shared_memory.KEEP_SECONDS if keeps else None):
                        shared_memory.release_kept()
                    self._now = self._polled = monotonic()

    def rest(self) -> None:
        """There is nothing to run: nothing is held back."""
        context.set_current(None)
        if self.output.dirty:
            self.output.flush()
        self.outbox.flush()

    # --- what the loop asks

    def takes(self, each: Input) -> bool:
        """Whether the loop is to run this input: a plain function's is not for it."""
        target = self.targets.get(each.method)
        return target is not None and target.is_async

    async def start(self, inputs: list[Input]) -> None:
        """Runs an asynchronous input or batch to its end."""
        running = self._begin_all(inputs, monotonic())
        if not running:
            return
        loop = self.loop
        run = loop.launch(running, self.targets[inputs[0].method])
        await loop.wait(run)
        self._end_all(running, loop.finish(run), self.cancellation.end() or run.reason)

    # --- one input

    def _begin(self, each: Input, now: float) -> int:
        """Input `each` starts. Returns why it must not, else 0."""
        seq = each.seq
        inbox = self.inbox
        self.page.start(seq, now)
        inbox.started = inbox.running = self.output.seq = seq
        reason = self.cancellation.begin(seq)
        if inbox.cancelled and not reason:
            return inbox.cancelled.get(seq, 0)
        return reason

    def _end(self, each: Input, status: int, value: Payload) -> None:
        """Input `each` has ended like that, unless it was to stop: then it ended so."""
        reason = self.cancellation.end()
        if self.output.dirty:
            self.output.flush()
        if not reason:
            self.ended_by = 0
        self._answer(each, status, value, reason, monotonic())

    def _answer(self, each: Input, status: int, value: Payload, reason: int, now: float) -> None:
        inbox = self.inbox
        inbox.running = self.output.seq = 0
        if inbox.cancelled:
            inbox.cancelled.pop(each.seq, None)
        if reason:
            value.close()
            if self.ended_by:
                return  # it gets no answer: the signal that ends the container says what became of it
            status, value = self.outcomes.stopped(each, reason)
        self._short = self._short + 1 if now - self._now < SHORT_SECONDS else 0
        self._now = now
        more = self._short > SHORT_INPUTS and bool(inbox.inputs)
        self.outbox.add_result(each.seq, status, value[0], value[1], more, now)

    def _refuse(self, each: Input, reason: int) -> None:
        """Input `each` is not run."""
        descriptors.close_all(each.fds)
        status, value = self.outcomes.stopped(each, reason, started=False)
        self._end(each, status, value)

    def _run(self, each: Input, target: Target | None) -> None:
        reason = self._begin(each, self._now)
        if reason:
            self._refuse(each, reason)
            return
        context.set_current(each.call_id, each.index)
        try:
            if target is None:
                descriptors.close_all(each.fds)
                outcome = self.outcomes.unknown(each, self.targets)
            elif target.is_generator:
                outcome = self._stream(each, target.call)
            else:
                outcome = messages.OK, self.enter_user_code(each, target.call)
        except BaseException as error:
            if self.in_child:
                leave_child(error)
            outcome = self.outcomes.failed(each, error)
        if self.in_child:
            leave_child(None)
        self._end(each, *outcome)

    def enter_user_code(self, each: Input, call: Callable[..., Any]) -> Payload:
        """Runs a plain function. May be left by an InputCancellation at any point."""
        cancellation = self.cancellation
        cancellation.active = True
        try:
            if cancellation.pending:
                cancellation.check()
            args, kwargs = loads(each.data, each.fds)
            value = call(*args, **kwargs)
            if type(value) in NOT_VALUES:
                value = self._no_value(value)
            return dumps(value, name=self.outcomes.result_name)
        finally:
            cancellation.active = False

    def _no_value(self, value: Any) -> Any:
        if isinstance(value, CoroutineType):
            # A decorator can hide that a function is asynchronous.
            return self.loop.run(value)
        raise self.outcomes.no_value(value)

    def step_user_code(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a part of an input. May be left by an InputCancellation at any point."""
        cancellation = self.cancellation
        cancellation.active = True
        try:
            if cancellation.pending:
                cancellation.check()
            return step(*arguments)
        finally:
            cancellation.active = False

    # --- a batch

    def _run_batch(self, inputs: list[Input], target: Target) -> None:
        running = self._begin_all(inputs, self._now)
        if not running:
            return
        batch = Batch(running, target, self.outcomes)
        context.set_current(running[0].call_id, running[0].index)
        try:
            columns = self.step_user_code(batch.unpickle_batch)
            if columns is not None:
                value = self.step_user_code(target.call, *columns)
                if type(value) in NOT_VALUES:
                    value = self._no_value(value)
                self.step_user_code(batch.pickle_batch, value)
        except BaseException as error:
            if self.in_child:
                leave_child(error)
            batch.fail(error)
        if self.in_child:
            leave_child(None)
        self._end_all(running, batch.finished(), self.cancellation.end())

    def _begin_all(self, inputs: list[Input], now: float) -> list[Input]:
        """The inputs of a batch start, or one that is in none. Returns those that are to run."""
        running: list[Input] = []
        for each in inputs:
            reason = self._begin(each, now)
            if reason:
                self._refuse(each, reason)
            else:
                running.append(each)
        if running:
            self.inbox.running, self.output.seq = running[-1].seq, running[0].seq
            self.cancellation.pending = self.cancellation.begin(running[0].seq, [each.seq for each in running[1:]])
        return running

    def _end_all(self, inputs: Sequence[Input], outcomes: Sequence[Outcome], reason: int) -> None:
        """They have ended like that, unless they were to stop, all together."""
        if self.output.dirty:
            self.output.flush()
        if not reason:
            self.ended_by = 0
        now = monotonic()
        for each, (status, value) in zip(inputs, outcomes, strict=True):
            own = reason and (self.inbox.cancelled.get(each.seq) or self.page.cancelled(each.seq))
            self._answer(each, status, value, reason if own in (0, SharedPage.REVOKED) else own, now)

    # --- generators

    def _stream(self, each: Input, call: Callable[..., Any]) -> Outcome:
        credit = self.inbox.open_credit(each)
        try:
            return stream(each, call, credit, self.outbox, self)
        finally:
            del self.inbox.credits[each.seq]

    def is_stopped(self, each: Input) -> bool:
        """Whether the generator is to be closed: then it counts as stopped."""
        now = monotonic()
        if now - self._polled > POLL_SECONDS:
            self._polled = now
            self._connection.poll()
        if each.seq in self.inbox.cancelled or self.cancellation.pending or self.inbox.lost:
            self.cancellation.take()
            return True
        return False

    def wait_for_credit(self, each: Input, credit: Credit) -> None:
        """Waits until there is credit, or the generator is to be closed."""
        self.output.flush()
        self.outbox.flush()
        while True:
            credit.waiter.clear()
            if credit.items > 0 or each.seq in self.inbox.cancelled or self.cancellation.pending or self.halted:
                return
            self._connection.wait(credit.waiter)
