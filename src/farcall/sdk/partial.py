"""A function or method that carries decorators' marks and is not yet part of an app."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from farcall.errors import InvalidError

if TYPE_CHECKING:
    from farcall.sdk.function import Function
    from farcall.spec.function import Batching, Concurrency

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R", covariant=True)
L = TypeVar("L", covariant=True)

GENERATOR = 0x20 | 0x200  # code flags: generator, asynchronous generator
ASYNC = 0x80 | 0x200  # code flags: coroutine, asynchronous generator


def code_flags(raw: Callable[..., Any]) -> int:
    """The flags of a function's code, 0 for callables that have none."""
    while hasattr(raw, "func"):  # functools.partial
        raw = raw.func  # type: ignore[attr-defined]
    return getattr(getattr(raw, "__code__", None), "co_flags", 0)


class PartialFunction(Generic[P, R, L]):
    """A function with marks (`concurrent`, `batched`, web decorators), or a method of a class (`method`).

    `@app.function()` makes a `Function` of it. In a class that `@app.cls()` decorates, looking it up on an instance
    gives a `Function` bound to that instance. `R` is the result of the remote call, `L` of the local one.
    """

    def __init__(self, raw: Callable[P, Any]) -> None:
        self.raw = raw
        self.is_method = False
        self.is_generator: bool | None = None
        self.unimplemented: tuple[str, ...] = ()
        self.concurrency: Concurrency | None = None
        self.batching: Batching | None = None
        self.is_web = False
        self.__name__ = getattr(raw, "__name__", repr(raw))
        self.__qualname__ = getattr(raw, "__qualname__", self.__name__)
        self.__module__ = raw.__module__
        self.__doc__ = raw.__doc__
        self.__wrapped__ = raw

    @overload
    def __get__(self, instance: None, owner: Any) -> Self: ...
    @overload
    def __get__(
        self: PartialFunction[Concatenate[Any, Q], R, L], instance: object, owner: Any
    ) -> Function[Q, R, L]: ...
    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is None:
            return self
        from farcall.sdk import cls as classes

        return classes.bound_method(instance, self.__name__)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> L:
        raise InvalidError(
            f"{self.__qualname__} is decorated and cannot be called like this; "
            f"put it into an app and write .remote(...) to run it in a container, .local(...) to run it here"
        )

    def __repr__(self) -> str:
        return f"<farcall.PartialFunction {self.__qualname__}>"


def partial_of(target: Any, decorator: str) -> PartialFunction[Any, Any, Any]:
    """`target` as a PartialFunction to put a mark on."""
    if isinstance(target, PartialFunction):
        return target  # pyright: ignore[reportUnknownVariableType]
    from farcall.sdk.function import Function

    if isinstance(target, Function):
        raise InvalidError(f"@farcall.{decorator} goes below @app.function(), next to the function: swap the two lines")
    if not callable(target):
        raise InvalidError(f"@farcall.{decorator}() decorates a function, not {target!r}")
    return PartialFunction(target)
