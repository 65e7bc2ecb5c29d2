"""Local mode: every function runs in this process, through the same serialization, so that breakpoints work, on any
system.

There is no container: no isolation, no resources, no retries, no timeouts. Values are still pickled there and back, so
a program that works here does not fail for its values elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from farcall import errors
from farcall.sdk import context, ids, values

if TYPE_CHECKING:
    from farcall.sdk.calls import Target

_active = False
_instances: dict[tuple[str, bytes], Any] = {}
_spawned: dict[str, list[tuple[bool, Any]]] = {}


def use_local() -> None:
    """Switches this process to local mode, for good."""
    global _active
    _active = True


def is_active() -> bool:
    """Whether functions run in this process."""
    return _active


def close() -> None:
    """An app has ended: runs the exit hooks of its instances."""
    instances = list(_instances.items())
    _instances.clear()
    for (function_id, _), instance in instances:
        for hook in _registered(function_id).exit_hooks:
            _finish(hook(instance))


def remote(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One input, here and now."""
    with _Input():
        return _copied(_finish(_invoke(target, args, kwargs)))


async def remote_async(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`remote` on the running loop."""
    with _Input():
        result = _invoke(target, args, kwargs)
        return _copied(await result if isinstance(result, Awaitable) else result)


def remote_gen(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Generator[Any]:
    """The items of a generator, one step at a time."""
    with _Input():
        items = _invoke(target, args, kwargs)
        if hasattr(items, "__aiter__"):
            import asyncio

            loop = asyncio.new_event_loop()
            try:
                iterator = aiter(items)
                while True:
                    try:
                        yield _copied(loop.run_until_complete(anext(iterator)))
                    except StopAsyncIteration:
                        return
            finally:
                loop.run_until_complete(items.aclose())
                loop.close()
        else:
            try:
                for item in items:
                    yield _copied(item)
            finally:
                items.close()


async def remote_gen_async(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AsyncGenerator[Any]:
    """`remote_gen` on the running loop."""
    with _Input():
        items = _invoke(target, args, kwargs)
        if hasattr(items, "__aiter__"):
            async for item in items:
                yield _copied(item)
        else:
            for item in items:
                yield _copied(item)


def map_(
    target: Target, iterables: Sequence[Iterable[Any]], kwargs: Mapping[str, Any], return_exceptions: bool, star: bool
) -> Generator[Any]:
    """One input after another."""
    for args in (tuple(item) for item in iterables[0]) if star else zip(*iterables, strict=False):
        try:
            result = remote(target, args, kwargs)
        except Exception as error:
            if not return_exceptions:
                raise
            result = error
        yield result


async def map_async(
    target: Target, iterables: Sequence[Any], kwargs: Mapping[str, Any], return_exceptions: bool, star: bool
) -> AsyncGenerator[Any]:
    """`map_` on the running loop."""
    from farcall.sdk.maps import zip_async

    async for args in zip_async(iterables, star):
        try:
            result = await remote_async(target, args, kwargs)
        except Exception as error:
            if not return_exceptions:
                raise
            result = error
        yield result


def spawn(target: Target, inputs: Iterable[tuple[Sequence[Any], Mapping[str, Any]]]) -> str:
    """Runs the inputs at once and keeps their results for this process."""
    call_id = ids.new_id("fc")
    outcomes: list[tuple[bool, Any]] = []
    for args, kwargs in inputs:
        try:
            outcomes.append((True, remote(target, args, kwargs)))
        except Exception as error:
            outcomes.append((False, error))
    _spawned[call_id] = outcomes
    return call_id


def get_output(call_id: str, index: int) -> Any:
    """The result of a spawned input."""
    if call_id not in _spawned:
        raise errors.NotFoundError(f"there is no call {call_id} in this process; in local mode calls do not outlive it")
    succeeded, value = _spawned[call_id][index]
    if succeeded:
        return value
    raise value


class _Input:
    """The context variables of one input, as a container would set them."""

    def __enter__(self) -> None:
        self._outer = context.current()
        context.set_current(ids.new_id("fc"), 0)

    def __exit__(self, *exc: object) -> None:
        context.set_current(*(self._outer or (None, 0)))


def _registered(function_id: str) -> Any:
    from farcall.sdk.function import registry

    return registry[function_id]


def _invoke(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    payload = values.dumps_call(args, kwargs)
    args, kwargs = values.loads(payload.data, payload.fds)
    registered = _registered(target.function_id)
    if not target.method:
        return registered.raw(*args, **kwargs)
    key = target.function_id, target.params
    if key not in _instances:
        instance = registered.construct(target.params)
        for hook in registered.enter_hooks:
            _finish(hook(instance))
        _instances[key] = instance
    method: Callable[..., Any] = registered.methods[target.method]
    return method(_instances[key], *args, **kwargs)


def _finish(result: Any) -> Any:
    """The result of a function that may have been asynchronous, awaited wherever we are."""
    if not isinstance(result, Awaitable):
        return result
    # Late: calls.py imports this module for every program.
    import asyncio
    import threading

    async def await_it() -> Any:
        return await cast("Awaitable[Any]", result)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(await_it())
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(asyncio.run(await_it())))
    thread.start()
    thread.join()
    return outcome[0]


def _copied(value: Any) -> Any:
    payload = values.dumps(value)
    return values.loads(payload.data, payload.fds)
