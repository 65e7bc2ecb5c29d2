"""Asynchronous user code: one event loop for the life of the container, on the main thread.

While it runs it reads the connection. It goes on running while there is nothing to do, for the tasks that user code
has left; a plain function's input ends it for as long as that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from farcall.runner.batches import Batch
from farcall.runner.inbox import Credit, Input
from farcall.runner.outcomes import NOTHING, Outcome, leave_child
from farcall.runner.output import current_seq
from farcall.sdk import context, shared_memory
from farcall.sdk.values import dumps, loads
from farcall.wire import descriptors, messages
from farcall.wire.page import SharedPage

if TYPE_CHECKING:
    from farcall.runner.execution import Executor
    from farcall.runner.loading import Target


class Host(Protocol):
    """Who decides what runs: one input at a time, or many."""

    def takes(self, each: Input) -> bool:
        """Whether the loop is to run this input; else it ends."""
        ...

    async def start(self, inputs: list[Input]) -> None:
        """Starts an input or a batch; returns when the next may start."""
        ...

    def rest(self) -> None:
        """There is nothing more to start."""
        ...


class TaskRun:
    """An input, or a batch, that runs as a task. `reason` is why it is being stopped."""

    task: asyncio.Task[list[Outcome]]

    def __init__(self, inputs: Sequence[Input]) -> None:
        self.inputs = inputs
        self.reason = 0


class Loop:
    """Runs asynchronous inputs and hooks."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._releases: asyncio.TimerHandle | None = None

    def run(self, coroutine: Any) -> Any:
        """The result of a coroutine, from code on the main thread that runs on no loop."""
        task = self._loop.create_task(_awaited(coroutine))
        cancellation, inbox = self._executor.cancellation, self._executor.inbox
        active, cancellation.active = cancellation.active, False
        seq = cancellation.seq
        stop = partial(self._soon, self._stop_coroutine, task)
        cancellation.on_pending = stop
        if seq:
            inbox.on_cancel[seq] = stop
        try:
            succeeded, result = self._loop.run_until_complete(task)
        finally:
            cancellation.on_pending = None
            inbox.on_cancel.pop(seq, None)
            cancellation.active = active
        if not succeeded:
            raise result
        return result

    def run_from_thread(self, coroutine: Any) -> Any:
        """The result of a coroutine, from another thread than the one where the loop runs."""
        succeeded, result = asyncio.run_coroutine_threadsafe(_awaited(coroutine), self._loop).result()
        if not succeeded:
            raise result
        return result

    def serve(self, host: Host) -> None:
        """Runs inputs until one comes that `host` does not take, or the runner is to stop or has lost its
        connection."""
        self._loop.run_until_complete(self._serve(host))

    def wake(self) -> None:
        """From a signal handler: the loop looks around."""
        self._soon(_nothing)

    def close(self) -> None:
        """Cancels what is left and closes the loop."""
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self, host: Host) -> None:
        executor = self._executor
        inbox, connection = executor.inbox, executor.connection
        connection.watch(self._loop)
        try:
            while not executor.halted:
                if inbox.ready:
                    if not host.takes(inbox.inputs[0]):
                        return
                    await host.start(inbox.take_batch())
                    continue
                host.rest()
                inbox.waiter.clear()
                if not inbox.ready and not executor.halted:
                    if shared_memory.kept and self._releases is None:
                        self._release_kept()
                    await connection.wait_async(inbox.waiter)
        finally:
            connection.unwatch(self._loop)

    def _release_kept(self) -> None:
        """Gives back shared memory that has not been used for a while, now and for as long as there is some."""
        delay = shared_memory.KEEP_SECONDS
        shared_memory.release_kept(delay)
        self._releases = self._loop.call_later(delay, self._release_kept) if shared_memory.kept else None

    # --- tasks

    def launch(self, inputs: Sequence[Input], target: Target) -> TaskRun:
        """Starts a task for an input, or a batch. What it comes to, `finish` tells when the task is done."""
        run = TaskRun(inputs)
        run.task = self._loop.create_task(self._guarded(inputs, target))
        inbox = self._executor.inbox
        stop = partial(self._soon, self._stop_if_all, run)
        for each in inputs:
            inbox.on_cancel[each.seq] = stop
        if inbox.cancelled:  # it may have come before it could be called
            self._stop_if_all(run)
        return run

    def finish(self, run: TaskRun) -> list[Outcome]:
        """The outcomes of a task that is done, one for each input."""
        for each in run.inputs:
            self._executor.inbox.on_cancel.pop(each.seq, None)
        if not run.task.cancelled():
            return run.task.result()
        for each in run.inputs:  # it was cancelled before its first step
            descriptors.close_all(each.fds)
        return [(messages.OK, NOTHING)] * len(run.inputs)

    async def wait(self, run: TaskRun) -> None:
        """Waits for a task, the only one that runs: what the main thread is told to stop is this one."""
        cancellation = self._executor.cancellation
        cancellation.on_pending = partial(self._soon, self.stop, run)
        if cancellation.pending:
            self.stop(run)
        try:
            await asyncio.wait((run.task,))
        finally:
            cancellation.on_pending = None

    def run_for(self, runs: Collection[TaskRun], seconds: float) -> None:
        """Runs the loop, from code that runs on none, until one of the tasks is done or the time is over."""
        self._loop.run_until_complete(
            asyncio.wait([run.task for run in runs], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        )

    def stop(self, run: TaskRun) -> None:
        """Cancels a task, on the loop's thread."""
        if not run.task.done() and not run.reason:
            run.reason = SharedPage.CANCELLED
            run.task.cancel()

    def _stop_if_all(self, run: TaskRun) -> None:
        if all(each.seq in self._executor.inbox.cancelled for each in run.inputs):
            self.stop(run)

    def _stop_coroutine(self, task: asyncio.Task[Any]) -> None:
        cancellation = self._executor.cancellation
        if not task.done() and not cancellation.raised:
            cancellation.take()
            task.cancel()

    def _soon(self, call: Callable[..., None], *arguments: Any) -> None:
        """Calls it on the loop. Any thread, and signal handlers."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)

    # --- what inputs do

    async def _guarded(self, inputs: Sequence[Input], target: Target) -> list[Outcome]:
        # Nothing may leave the task: the loop would take SystemExit as its own end.
        executor, first = self._executor, inputs[0]
        context.set_current(first.call_id, first.index)
        current_seq.set(first.seq)
        try:
            if target.batched:
                return await self._batch(inputs, target)
            return [await (self._stream if target.is_generator else self._call)(first, target.call)]
        except BaseException as error:
            if executor.in_child:
                leave_child(error)
            return [executor.outcomes.failed(each, error) for each in inputs]
        finally:
            if executor.in_child:
                leave_child(None)

    async def _call(self, each: Input, call: Callable[..., Any]) -> Outcome:
        args, kwargs = loads(each.data, each.fds)
        value = await call(*args, **kwargs)
        return messages.OK, dumps(value, name=self._executor.outcomes.result_name)

    async def _batch(self, inputs: Sequence[Input], target: Target) -> list[Outcome]:
        batch = Batch(inputs, target, self._executor.outcomes)
        try:
            columns = batch.unpickle_batch()
            if columns is not None:
                batch.pickle_batch(await target.call(*columns))
        except BaseException as error:
            if self._executor.in_child:
                leave_child(error)
            batch.fail(error)
        return batch.finished()

    async def _stream(self, each: Input, call: Callable[..., Any]) -> Outcome:
        inbox, outbox = self._executor.inbox, self._executor.outbox
        credit = inbox.open_credit(each)
        count = 0
        items: Any = None
        try:
            args, kwargs = loads(each.data, each.fds)
            items = aiter(call(*args, **kwargs))
            while True:
                if credit.items <= 0:
                    await self._wait_for_credit(each, credit)
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return messages.GENERATOR_DONE, dumps(count)
                value = dumps(item, name="item")
                credit.items -= 1
                outbox.add_item(each.seq, count, value, monotonic())
                count += 1
        finally:
            del inbox.credits[each.seq]
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

    async def _wait_for_credit(self, each: Input, credit: Credit) -> None:
        executor = self._executor
        executor.output.flush()
        executor.outbox.flush()
        while True:
            credit.waiter.clear()
            if executor.inbox.lost:
                executor.inbox.cancel(each.seq, SharedPage.CANCELLED)  # its consumer is lost too
                await asyncio.sleep(0)
            if credit.items > 0:
                return
            await executor.connection.wait_async(credit.waiter)


async def _awaited(coroutine: Any) -> tuple[bool, Any]:
    try:
        return True, await coroutine
    except BaseException as error:
        return False, error


def _nothing() -> None:
    pass
