"""Methods with two forms: called, they block; through `.aio`, they are awaited or iterated asynchronously.

    class Queue:
        @twin
        def get(self, timeout: float | None = None) -> str: ...

        @get.awaited
        async def _get(self, timeout: float | None = None) -> str: ...

`queue.get()` blocks, `await queue.get.aio()` awaits. Type checkers see the arguments and the result of both.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from farcall.errors import AsyncUsageWarning

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
S = TypeVar("S")

_warned: set[str] = set()


def warn_if_in_loop(name: str, form: str, stacklevel: int = 3) -> None:
    """Warns, once for each `name`, when called inside a running event loop. `form` is what to write instead.

    A notebook's cells run inside its kernel's loop, which waits for them anyway: no warning there.
    """
    events = sys.modules.get("asyncio.events")
    if events is None or events._get_running_loop() is None or name in _warned or "get_ipython" in vars(_builtins()):
        return
    _warned.add(name)
    warnings.warn(
        f"{name}() blocks the running event loop; inside async code write `{form}`",
        AsyncUsageWarning,
        stacklevel=stacklevel,
    )


def _builtins() -> Any:
    return sys.modules["builtins"]


class Twin(Generic[P, R]):
    """A bound method: call it to block, or `await method.aio(...)`."""

    def __init__(
        self,
        blocking: Callable[P, R],
        awaited: Callable[P, Awaitable[R]],
        name: str,
        doc: str | None = None,
    ) -> None:
        self._blocking = blocking
        self._awaited = awaited
        self._name = name
        self.__doc__ = doc

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        warn_if_in_loop(self._name, f"await {self._name}.aio(...)")
        return self._blocking(*args, **kwargs)

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The same, awaited."""
        return await self._awaited(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<{self._name}, also {self._name}.aio>"


class StreamTwin(Generic[P, R]):
    """A bound method that yields: `for x in method(...)`, or `async for x in method.aio(...)`."""

    def __init__(
        self,
        blocking: Callable[P, Generator[R, None, None]],
        asynchronous: Callable[P, AsyncGenerator[R, None]],
        name: str,
        doc: str | None = None,
    ) -> None:
        self._blocking = blocking
        self._asynchronous = asynchronous
        self._name = name
        self.__doc__ = doc

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Generator[R, None, None]:
        warn_if_in_loop(self._name, f"async for ... in {self._name}.aio(...)")
        return self._blocking(*args, **kwargs)

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[R, None]:
        """The same, to be iterated with `async for`."""
        return self._asynchronous(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<{self._name}, also {self._name}.aio>"


class _Descriptor:
    """What the decorators `twin` and `stream_twin` share: the function's name, its owner's and its docstring."""

    def __init__(self, blocking: Callable[..., Any]) -> None:
        self._blocking = blocking
        self._other: Callable[..., Any] | None = None
        self._name = blocking.__name__
        self.__doc__ = blocking.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def _bound(self, instance: Any) -> tuple[Callable[..., Any], Callable[..., Any], str, str | None]:
        if self._other is None:
            raise TypeError(f"{self._name} has no asynchronous form")
        title = getattr(instance, "_display_name", None) or type(instance).__name__
        return (
            self._blocking.__get__(instance),
            self._other.__get__(instance),
            f"{title}.{self._name}",
            self.__doc__,
        )


class twin(_Descriptor, Generic[S, P, R]):  # noqa: N801 - used as a decorator, like property
    """Makes a blocking method one with an awaited twin; `@method.awaited` marks the twin."""

    def __init__(self, blocking: Callable[Concatenate[S, P], R]) -> None:
        super().__init__(blocking)

    def awaited(self, function: Callable[Concatenate[S, P], Awaitable[R]]) -> Callable[..., Awaitable[R]]:
        """Decorator of the awaited form."""
        self._other = function
        return function

    @overload
    def __get__(self, instance: None, owner: Any) -> Self: ...
    @overload
    def __get__(self, instance: S, owner: Any) -> Twin[P, R]: ...
    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else Twin(*self._bound(instance))


class stream_twin(_Descriptor, Generic[S, P, R]):  # noqa: N801 - used as a decorator, like property
    """Makes a generator method one with an asynchronous twin; `@method.asynchronous` marks the twin."""

    def __init__(self, blocking: Callable[Concatenate[S, P], Generator[R, None, None]]) -> None:
        super().__init__(blocking)

    def asynchronous(
        self, function: Callable[Concatenate[S, P], AsyncGenerator[R, None]]
    ) -> Callable[..., AsyncGenerator[R, None]]:
        """Decorator of the asynchronous form."""
        self._other = function
        return function

    @overload
    def __get__(self, instance: None, owner: Any) -> Self: ...
    @overload
    def __get__(self, instance: S, owner: Any) -> StreamTwin[P, R]: ...
    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else StreamTwin(*self._bound(instance))
