"""Local mode: every function runs in this process, through the same serialization, so that breakpoints work, on any
system.

There is no container: no isolation, no resources, no retries, no timeouts. Values are still pickled there and back, so
a program that works here does not fail for its values elsewhere. `farcall.testing` puts a `Platform` here, which makes
retries, timeouts and cold starts of its own.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from farcall import errors
from farcall.sdk import batches, context, ids, values
from farcall.sdk.cls import entering_of

if TYPE_CHECKING:
    import asyncio

    from farcall.sdk.calls import Target
    from farcall.sdk.entering import Entering

T = TypeVar("T")

_active = False
_instances: dict[tuple[str, bytes], Any] = {}
_spawned: dict[str, list[tuple[bool, Any]]] = {}


class Attempts(Protocol):
    """The attempts of one input. Each is a `with` block, in which an object's enter hooks run, then what the input
    calls."""

    def __enter__(self) -> Attempts: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None: ...

    def ready(self) -> None:
        """The enter hooks have run; raises what the attempt is to fail with, without the user's code."""

    def instead(self) -> Callable[..., Any] | None:
        """What takes the place of the user's function, if anything does."""

    def returned(self, value: Any) -> None:
        """What the input's function returned."""

    def again(self, error: Exception) -> bool:
        """Whether to try again after that. May raise another error in its place."""
        ...


class Platform(Protocol):
    """What a server would do for an input."""

    def attempts(self, target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Attempts:
        """Of a new input."""
        ...


class _Once:
    """One attempt, as it comes."""

    def __enter__(self) -> _Once:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None: ...

    def ready(self) -> None: ...

    def instead(self) -> Callable[..., Any] | None: ...

    def returned(self, value: Any) -> None: ...

    def again(self, error: Exception) -> bool:
        return False


class _NoPlatform:
    def __init__(self) -> None:
        self._once = _Once()

    def attempts(self, target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Attempts:
        return self._once


_platform: Platform = _NoPlatform()


def use_local() -> None:
    """Switches this process to local mode, for good."""
    global _active
    _active = True


@contextmanager
def local_on(platform: Platform) -> Generator[None]:
    """Local mode with that platform, for the time of a `with` block."""
    global _active, _platform
    before = _active, _platform
    _active, _platform = True, platform
    try:
        yield
    finally:
        _active, _platform = before


def is_active() -> bool:
    """Whether functions run in this process."""
    return _active


def only_with_server(what: str) -> None:
    """Raises UnimplementedError in local mode, for what needs a server."""
    if _active:
        raise errors.UnimplementedError(f"{what} needs the farcall server, which local mode (--local) does without")


def close() -> None:
    """An app has ended: runs the exit hooks of its instances."""
    try:
        while _instances:
            end_instance(*next(iter(_instances)))
    finally:
        _instances.clear()
        _loop.close()


def end_instance(function_id: str, params: bytes) -> None:
    """Runs the exit hooks of an object, where there is one, and lets it go."""
    instance = drop_instance(function_id, params)
    if instance is None or not entering_of(instance).done:
        return
    for hook in _registered(function_id).exit_hooks:
        _finish(hook(instance))


def drop_instance(function_id: str, params: bytes) -> Any:
    """Lets an object go, without its exit hooks, and returns it; None where there is none."""
    return _instances.pop((function_id, params), None)


def remote(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One input, here and now."""
    attempts = _platform.attempts(target, args, kwargs)
    while True:
        try:
            with _Input(target), attempts:
                result = _copied(_finish(_prepare(target, args, kwargs, attempts)()))
            break
        except Exception as error:
            if not attempts.again(error):
                raise
    attempts.returned(result)
    return result


async def remote_async(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`remote` on the running loop."""
    attempts = _platform.attempts(target, args, kwargs)
    while True:
        try:
            with _Input(target), attempts:
                result = (await _prepare_async(target, args, kwargs, attempts))()
                result = _copied(await result if isinstance(result, Awaitable) else result)
            break
        except Exception as error:
            if not attempts.again(error):
                raise
    attempts.returned(result)
    return result


def remote_gen(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Generator[Any]:
    """The items of a generator, one step at a time. There is one attempt: its items may have been seen."""
    step = _Input(target)
    with _platform.attempts(target, args, kwargs) as attempt:
        with step:
            items = _prepare(target, args, kwargs, attempt)()
        is_async = hasattr(items, "__aiter__")
        try:
            while True:
                with step:
                    try:
                        item = _copied(_finish(anext(items)) if is_async else next(items))
                    except (StopIteration, StopAsyncIteration):
                        return
                yield item
        finally:
            with step:
                if is_async:
                    _finish(items.aclose())
                else:
                    items.close()


async def remote_gen_async(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AsyncGenerator[Any]:
    """`remote_gen` on the running loop."""
    step = _Input(target)
    with _platform.attempts(target, args, kwargs) as attempt:
        with step:
            items = (await _prepare_async(target, args, kwargs, attempt))()
        is_async = hasattr(items, "__aiter__")
        try:
            while True:
                with step:
                    try:
                        item = _copied(await anext(items) if is_async else next(items))
                    except (StopIteration, StopAsyncIteration):
                        return
                yield item
        finally:
            with step:
                if is_async:
                    await items.aclose()
                else:
                    items.close()


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
    """The context variables of one input, as a container would set them, while its code runs. Like a container's, what
    it ends with does not end this process."""

    def __init__(self, target: Target) -> None:
        self._name = target.name
        self._call_id = ids.new_id("fc")
        self._outer: tuple[str, int] | None = None

    def __enter__(self) -> None:
        self._outer = context.current()
        context.set_current(self._call_id, 0)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        context.set_current(*(self._outer or (None, 0)))
        if isinstance(error, SystemExit):
            raise errors.ExecutionError(f"{self._name} ended with SystemExit: {error}") from error


def _registered(function_id: str) -> Any:
    from farcall.sdk.function import registry

    return registry[function_id]


def _prepare(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], attempt: Attempts) -> Callable[[], Any]:
    """The user's function with its arguments as they arrive; a class's object is made, and its hooks run, before."""
    if target.method and attempt.instead() is None:
        with _Instance(target) as entering:
            entering.blocking(_finish)
    return _call(target, args, kwargs, attempt)


async def _prepare_async(
    target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], attempt: Attempts
) -> Callable[[], Any]:
    """`_prepare` on the running loop."""
    if target.method and attempt.instead() is None:
        with _Instance(target) as entering:
            await entering.awaited()
    return _call(target, args, kwargs, attempt)


class _Instance:
    """The object of a class with its parameters, made where there is none; an enter hook that fails is its end, as it
    is a container's."""

    def __init__(self, target: Target) -> None:
        self._key = target.function_id, target.params

    def __enter__(self) -> Entering:
        made = _instances.get(self._key)
        if made is None:
            function_id, params = self._key
            made = _instances.setdefault(self._key, _registered(function_id).construct(params))
        return entering_of(made)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            _instances.pop(self._key, None)


def _call(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], attempt: Attempts) -> Callable[[], Any]:
    attempt.ready()
    payload = values.dumps_call(args, kwargs)
    args, kwargs = values.loads(payload.data, payload.fds)
    if (instead := attempt.instead()) is not None:
        return partial(instead, *args, **kwargs)
    registered = _registered(target.function_id)
    raw: Callable[..., Any] = registered.methods[target.method] if target.method else registered.raw
    call = partial(raw, _instances[target.function_id, target.params]) if target.method else raw
    if registered.declaration.batching is None:
        return partial(call, *args, **kwargs)
    names = batches.parameter_names(raw, target.name, is_method=bool(target.method))
    return partial(_batch_of_one, target.name, call, batches.row(target.name, names, args, kwargs))


def _batch_of_one(name: str, call: Callable[..., Any], row: Sequence[Any]) -> Any:
    """A batched function with one item: here nobody else's is waited for."""
    value = call(*batches.columns([row]))

    async def first() -> Any:
        return batches.results(name, await value, 1)[0]

    return first() if isinstance(value, Awaitable) else batches.results(name, value, 1)[0]


class _Loop:
    """The event loop of asynchronous functions that blocking code calls: one for all, as in a container, so that what
    an enter hook opens works in the methods."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy = threading.Lock()

    def run(self, awaitable: Awaitable[T]) -> T:
        """The result of `awaitable`; in another thread where this one has a loop that runs."""
        import asyncio

        async def wait() -> T:
            return await awaitable

        if asyncio._get_running_loop() is None:  # the public one raises, and would be the context of users' errors
            return self._run(wait())
        outcome: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                outcome.append(self._run(wait()))
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=copy_context().run, args=(run,))
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        import asyncio

        if not self._busy.acquire(blocking=False):  # an asynchronous function waits for another one
            return asyncio.run(coroutine)
        try:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            return self._loop.run_until_complete(coroutine)
        finally:
            self._busy.release()

    def close(self) -> None:
        """Ends the loop, where there is one and it does not run."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_running():
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


_loop = _Loop()


def _finish(result: Any) -> Any:
    """The result of a function that may have been asynchronous, awaited wherever we are."""
    return _loop.run(cast("Awaitable[Any]", result)) if isinstance(result, Awaitable) else result


def _copied(value: Any) -> Any:
    payload = values.dumps(value)
    return values.loads(payload.data, payload.fds)
