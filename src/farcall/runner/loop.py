"""Asynchronous user code: one event loop for the life of the container, on the main thread.

While it runs it reads the connection. It goes on running while there is nothing to do, for the tasks that user code
has left; a plain function's input ends it for as long as that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any

from farcall.runner.execution import leave_child
from farcall.runner.inbox import Input
from farcall.sdk import context, shared_memory
from farcall.sdk.values import Payload, dumps, loads
from farcall.wire import descriptors, messages

if TYPE_CHECKING:
    from farcall.runner.execution import Executor, Outcome


class Loop:
    """Runs asynchronous inputs and hooks, one at a time."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._task: asyncio.Task[Any] | None = None
        self._releases: asyncio.TimerHandle | None = None

    def run(self, coroutine: Any) -> Any:
        """The result of a coroutine, from code that runs on no loop."""
        task = self._loop.create_task(_awaited(coroutine))
        cancellation, inbox = self._executor.cancellation, self._executor.inbox
        active, cancellation.active = cancellation.active, False
        self._task = task
        cancellation.on_pending = inbox.on_cancel = self._cancel_soon
        try:
            succeeded, result = self._loop.run_until_complete(task)
        finally:
            cancellation.on_pending = inbox.on_cancel = None
            self._task = None
            cancellation.active = active
        if not succeeded:
            raise result
        return result

    def serve(self) -> None:
        """Runs inputs until the next is a plain function's, or the runner is to stop or has lost its connection."""
        self._loop.run_until_complete(self._serve())

    def wake(self) -> None:
        """From a signal handler: the loop looks around."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_nothing)

    def close(self) -> None:
        """Cancels what is left and closes the loop."""
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self) -> None:
        executor = self._executor
        inbox, connection = executor.inbox, executor.connection
        connection.watch(self._loop)
        try:
            while not executor.halted:
                if inbox.inputs:
                    target = executor.targets.get(inbox.inputs[0].method)
                    if target is None or not target.is_async:
                        return
                    work = self._stream if target.is_generator else self._call
                    await self._run(inbox.inputs.popleft(), work, target.call)
                    continue
                executor.rest()
                inbox.waiter.clear()
                if not inbox.inputs and not executor.halted:
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

    async def _run(
        self, each: Input, work: Callable[[Input, Any], Coroutine[Any, Any, Outcome]], call: Callable[..., Any]
    ) -> None:
        executor = self._executor
        reason = executor.begin(each, monotonic())
        if reason:
            executor.refuse(each, reason)
            return
        task = self._loop.create_task(self._guarded(each, work, call))
        self._task = task
        executor.cancellation.on_pending = executor.inbox.on_cancel = self._cancel_soon
        try:
            await asyncio.wait((task,))
        finally:
            executor.cancellation.on_pending = executor.inbox.on_cancel = None
            self._task = None
        if task.cancelled():  # before its first step
            descriptors.close_all(each.fds)
            executor.end(each, messages.OK, Payload(b""))
        else:
            executor.end(each, *task.result())

    async def _guarded(
        self, each: Input, work: Callable[[Input, Any], Coroutine[Any, Any, Outcome]], call: Callable[..., Any]
    ) -> Outcome:
        # Nothing may leave the task: the loop would take SystemExit as its own end.
        context.set_current(each.call_id, each.index)
        try:
            return await work(each, call)
        except BaseException as error:
            if self._executor.in_child:
                leave_child(error)
            return self._executor.failed(each, error)
        finally:
            if self._executor.in_child:
                leave_child(None)

    def _cancel_soon(self) -> None:
        """The input that runs shall stop. Any thread, and signal handlers."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        cancellation = self._executor.cancellation
        task = self._task
        if task is not None and not task.done() and not cancellation.raised:
            cancellation.take()
            task.cancel()

    # --- what inputs do

    async def _call(self, each: Input, call: Callable[..., Any]) -> Outcome:
        args, kwargs = loads(each.data, each.fds)
        value = await call(*args, **kwargs)
        return messages.OK, dumps(value, name=self._executor.result_name)

    async def _stream(self, each: Input, call: Callable[..., Any]) -> Outcome:
        executor = self._executor
        inbox, outbox = executor.inbox, executor.outbox
        inbox.credit = each.credit
        args, kwargs = loads(each.data, each.fds)
        items = aiter(call(*args, **kwargs))
        count = 0
        try:
            while True:
                if inbox.credit <= 0:
                    await self._wait_for_credit()
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return messages.GENERATOR_DONE, dumps(count)
                value = dumps(item, name="item")
                inbox.credit -= 1
                outbox.add_item(each.seq, count, value, monotonic())
                count += 1
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

    async def _wait_for_credit(self) -> None:
        executor = self._executor
        inbox = executor.inbox
        executor.output.flush()
        executor.outbox.flush()
        while True:
            inbox.waiter.clear()
            if inbox.lost:
                self._cancel()  # its consumer is lost too
                await asyncio.sleep(0)
            if inbox.credit > 0:
                return
            await executor.connection.wait_async(inbox.waiter)


async def _awaited(coroutine: Any) -> tuple[bool, Any]:
    try:
        return True, await coroutine
    except BaseException as error:
        return False, error


def _nothing() -> None:
    pass
