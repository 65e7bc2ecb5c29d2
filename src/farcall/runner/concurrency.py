"""Running inputs beside each other: asynchronous ones as tasks on the main thread's loop, others in threads.

The server hands out no more than may run at once, so whatever arrives is started. A thread cannot be interrupted: an
input that is cancelled in one either ends by itself, or the worker ends the container.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from queue import SimpleQueue
from time import monotonic
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from farcall.runner.batches import Batch
from farcall.runner.execution import Executor
from farcall.runner.inbox import Credit, Input
from farcall.runner.loading import Target
from farcall.runner.outcomes import NOT_VALUES, Outcome, leave_child
from farcall.runner.output import current_seq
from farcall.runner.streams import stream
from farcall.sdk import context, shared_memory
from farcall.sdk.values import Payload, dumps, loads
from farcall.wire import descriptors, messages
from farcall.wire.page import SharedPage

if TYPE_CHECKING:
    from farcall.runner.loop import TaskRun

END_SECONDS = 1.0  # that inputs which run when the container is to end have before its exit hooks run
LOOK_SECONDS = 0.1  # how often, while they end, it is looked whether the wait is over


class Concurrency:
    """Runs all inputs of the inbox at once."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._inbox = executor.inbox
        self._tasks: set[TaskRun] = set()
        self._threads: set[ThreadRun] = set()
        self._work: SimpleQueue[ThreadRun] = SimpleQueue()
        self._idle = 0  # threads that wait for work
        self._lock = threading.Lock()  # guards `_idle` and `_threads`
        self._unanswered = False  # whether an input was stopped by the container's end
        executor.output.divide()

    @property
    def running(self) -> bool:
        """Whether an input runs."""
        return bool(self._tasks or self._threads)

    def serve(self) -> None:
        """Runs inputs until the runner is to stop or has lost its connection, and no input runs any more; where it is
        to stop, one may be left that does not end."""
        executor = self._executor
        if executor.has_loop or any(target.is_async for target in executor.targets.values()):
            executor.loop.serve(self)
        else:
            self._serve()
        self._finish()

    def _serve(self) -> None:
        executor, inbox = self._executor, self._inbox
        while not executor.halted:
            if inbox.ready:
                self._start(inbox.take_batch())
                continue
            self.rest()
            inbox.waiter.clear()
            if not inbox.ready and not executor.halted:
                timeout = shared_memory.KEEP_SECONDS if shared_memory.kept else None
                if not executor.connection.wait(inbox.waiter, timeout):
                    shared_memory.release_kept()

    def _finish(self) -> None:
        """Waits for what runs. Where the container is to end, tasks are cancelled, and nothing is waited for long."""
        executor = self._executor
        until = 0.0
        while self.running:
            if self._inbox.stopping and not until:
                until = monotonic() + END_SECONDS
                for task in list(self._tasks):
                    executor.loop.stop(task)
            if until and monotonic() > until:
                self._unanswered = True
                break
            if self._tasks:
                executor.loop.run_for(self._tasks, LOOK_SECONDS)
            else:
                for thread in list(self._threads)[:1]:
                    thread.over.wait(LOOK_SECONDS)
        if not self._unanswered:
            executor.ended_by = 0
        executor.output.flush()
        executor.outbox.flush()

    # --- what the loop asks

    def takes(self, each: Input) -> bool:
        """The loop takes all: what is not for it goes to a thread."""
        return True

    async def start(self, inputs: list[Input]) -> None:
        """Starts an input, or a batch."""
        self._start(inputs)

    def rest(self) -> None:
        """There is nothing more to start."""
        self._executor.outbox.flush()

    # --- starting and ending

    def _start(self, inputs: list[Input]) -> None:
        executor = self._executor
        running = [each for each in inputs if self._begin(each)]
        if not running:
            return
        target = executor.targets.get(running[0].method)
        if target is None:
            for each in running:
                descriptors.close_all(each.fds)
            self.end(running, [executor.outcomes.unknown(each, executor.targets) for each in running], 0)
        elif target.is_async:
            run = executor.loop.launch(running, target)
            self._tasks.add(run)
            run.task.add_done_callback(lambda _: self._end_task(run))
        else:
            self._start_thread(ThreadRun(self, executor, running, target))

    def _begin(self, each: Input) -> bool:
        """Input `each` starts; False where it must not, and has been answered."""
        seq, inbox = each.seq, self._inbox
        inbox.on_cancel[seq] = _nothing  # until there is something that can be stopped
        self._executor.page.start(seq, monotonic())
        inbox.started = seq
        reason = self._executor.page.cancelled(seq) or inbox.cancelled.get(seq, 0)
        if not reason:
            return True
        inbox.on_cancel.pop(seq, None)
        inbox.cancelled.pop(seq, None)
        descriptors.close_all(each.fds)
        self._send(each, *self._executor.outcomes.stopped(each, reason, started=False))
        return False

    def end(self, inputs: Sequence[Input], outcomes: Sequence[Outcome], reason: int) -> None:
        """They have ended like that, but for those that were to stop: all, for `reason`, or each for its own."""
        executor, inbox = self._executor, self._inbox
        for each, (status, value) in zip(inputs, outcomes, strict=True):
            executor.output.flush_input(each.seq)
            inbox.on_cancel.pop(each.seq, None)
            own = inbox.cancelled.pop(each.seq, 0) or reason
            if own:
                value.close()
                if executor.ended_by:
                    self._unanswered = True  # the signal that ends the container says what became of it
                    continue
                status, value = executor.outcomes.stopped(each, own)
            self._send(each, status, value)

    def _send(self, each: Input, status: int, value: Payload) -> None:
        self._executor.outbox.add_result(each.seq, status, value[0], value[1], False, monotonic())

    def _end_task(self, run: TaskRun) -> None:
        self._tasks.discard(run)
        self.end(run.inputs, self._executor.loop.finish(run), run.reason)

    # --- threads

    def _start_thread(self, run: ThreadRun) -> None:
        with self._lock:
            self._threads.add(run)
            if self._idle:
                self._idle -= 1
                self._work.put(run)
                return
        try:
            threading.Thread(target=self._run_thread, args=(run,), daemon=True, name="farcall-input").start()
        except RuntimeError as error:  # no more can be started
            self._threads.discard(run)
            for each in run.inputs:
                descriptors.close_all(each.fds)
            self.end(run.inputs, [self._executor.outcomes.failed(each, error) for each in run.inputs], 0)

    def _run_thread(self, run: ThreadRun) -> None:
        while True:
            outcomes = copy_context().run(run.outcomes)
            # The answer goes out while the thread counts as busy: what it makes room for finds an idle one, or starts
            # another.
            self.end(run.inputs, outcomes, run.reason)
            with self._lock:
                self._threads.discard(run)
                self._idle += 1
            run.over.set()
            del outcomes, run
            run = self._work.get()

    def await_value(self, coroutine: Any) -> Any:
        """The result of a coroutine that a plain function returned, in the thread that called it."""
        executor = self._executor
        if executor.has_loop:
            return executor.loop.run_from_thread(coroutine)
        import asyncio

        return asyncio.run(coroutine)


class ThreadRun:
    """An input, or a batch, that runs in a thread. `reason` is why it has stopped before its end."""

    def __init__(self, host: Concurrency, executor: Executor, inputs: Sequence[Input], target: Target) -> None:
        self.inputs = inputs
        self.reason = 0
        self.over = threading.Event()
        self._host = host
        self._executor = executor
        self._target = target

    def outcomes(self) -> list[Outcome]:
        """Runs the user's code."""
        executor, first = self._executor, self.inputs[0]
        context.set_current(first.call_id, first.index)
        current_seq.set(first.seq)
        try:
            if self._target.batched:
                return self._batch()
            return [self._stream(first) if self._target.is_generator else self._call(first)]
        except BaseException as error:
            if executor.in_child:
                leave_child(error)
            return [executor.outcomes.failed(each, error) for each in self.inputs]
        finally:
            if executor.in_child:
                leave_child(None)

    def _call(self, each: Input) -> Outcome:
        args, kwargs = loads(each.data, each.fds)
        value = self._value(self._target.call(*args, **kwargs))
        return messages.OK, dumps(value, name=self._executor.outcomes.result_name)

    def _batch(self) -> list[Outcome]:
        batch = Batch(self.inputs, self._target, self._executor.outcomes)
        try:
            columns = batch.unpickle_batch()
            if columns is not None:
                batch.pickle_batch(self._value(self._target.call(*columns)))
        except BaseException as error:
            if self._executor.in_child:
                leave_child(error)
            batch.fail(error)
        return batch.finished()

    def _value(self, value: Any) -> Any:
        if type(value) not in NOT_VALUES:
            return value
        if isinstance(value, CoroutineType):
            return self._host.await_value(value)
        raise self._executor.outcomes.no_value(value)

    # --- generators

    def _stream(self, each: Input) -> Outcome:
        inbox = self._executor.inbox
        credit = inbox.open_credit(each)
        try:
            return stream(each, self._target.call, credit, self._executor.outbox, self)
        finally:
            del inbox.credits[each.seq]

    def step_user_code(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a part of the generator."""
        return step(*arguments)

    def is_stopped(self, each: Input) -> bool:
        """Whether the generator is to be closed."""
        inbox = self._executor.inbox
        if each.seq in inbox.cancelled or inbox.lost or inbox.stopping:
            self.reason = SharedPage.CANCELLED
        return bool(self.reason)

    def wait_for_credit(self, each: Input, credit: Credit) -> None:
        """Waits until there is credit, or the generator is to be closed."""
        executor = self._executor
        executor.output.flush_input(each.seq)
        executor.outbox.flush()
        while True:
            credit.waiter.clear()
            if credit.items > 0 or self.is_stopped(each):
                return
            executor.connection.wait(credit.waiter)


def _nothing() -> None:
    pass
