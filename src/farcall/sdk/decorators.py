"""The decorators that stand under `@app.function()` and `@app.cls()`, and `parameter`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from farcall.errors import InvalidError
from farcall.sdk.concurrency import batching, concurrency, whole
from farcall.sdk.deprecations import deprecated
from farcall.sdk.partial import GENERATOR, PartialFunction, code_flags, partial_of

__all__ = [
    "asgi_app",
    "batched",
    "clustered",
    "concurrent",
    "enter",
    "exit",
    "fastapi_endpoint",
    "method",
    "parameter",
    "sessioned",
    "web_endpoint",
    "web_server",
    "wsgi_app",
]

P = ParamSpec("P")
R = TypeVar("R")
L = TypeVar("L")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

HOOK = "__farcall_hook__"  # attribute of a function that is an enter or exit hook
CONCURRENT = "__farcall_concurrent__"  # attribute of a class under @concurrent
CLUSTERED = "__farcall_clustered__"  # attribute of a class under @clustered


class MethodDecorator(Protocol):
    """What `method()` returns."""

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> PartialFunction[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> PartialFunction[P, R, R]: ...


class FunctionOrClassDecorator(Protocol):
    """What `concurrent()` returns: for functions, methods and classes."""

    @overload  # a class is a callable, too, and must be tried first
    def __call__(self, target: type[T], /) -> type[T]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, target: PartialFunction[P, R, L], /) -> PartialFunction[P, R, L]: ...
    @overload
    def __call__(
        self, target: Callable[P, Coroutine[Any, Any, R]], /
    ) -> PartialFunction[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, target: Callable[P, R], /) -> PartialFunction[P, R, R]: ...


class LooseDecorator(Protocol):
    """A decorator after which calls have other arguments than the function itself."""

    def __call__(self, target: Callable[..., Any], /) -> PartialFunction[..., Any, Any]: ...


def _without_parentheses(decorator: str, value: object) -> None:
    if value is not None:
        raise InvalidError(f"@farcall.{decorator} needs parentheses: write @farcall.{decorator}()")


def method(_misused: None = None, /, *, is_generator: bool | None = None) -> MethodDecorator:
    """Makes a method of a class callable remotely: `Model().predict.remote(x)`.

    `is_generator` is for a plain method that returns a generator.
    """
    _without_parentheses("method", _misused)

    def decorate(function: Any) -> Any:
        if isinstance(function, type):
            raise InvalidError(
                f"@farcall.method() decorates methods; for the class {function.__name__} write @app.cls()"
            )
        partial = partial_of(function, "method")
        partial.is_method = True
        if is_generator is not None:
            partial.is_generator = is_generator
        return partial

    return decorate


def _hook(decorator: str, kind: str) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        if isinstance(function, PartialFunction):
            raise InvalidError(f"{function.__qualname__} cannot be both a remote method and @farcall.{decorator}()")
        if not callable(function) or isinstance(function, type):
            raise InvalidError(f"@farcall.{decorator}() decorates a method, not {function!r}")
        if code_flags(function) & GENERATOR:
            raise InvalidError(f"{function.__qualname__}: an {decorator} hook cannot be a generator")
        hooks: tuple[str, ...] = getattr(function, HOOK, ())
        setattr(function, HOOK, (*hooks, kind))
        return function

    return decorate


def enter(_misused: None = None, /, *, snap: bool = False) -> Callable[[F], F]:
    """Runs the method once when a container starts, before its inputs; it may be asynchronous.

    Hooks with `snap=True` run before those without, and before the snapshot where there is one.
    """
    _without_parentheses("enter", _misused)
    return _hook("enter", "enter-snap" if snap else "enter")


def exit(_misused: None = None, /) -> Callable[[F], F]:
    """Runs the method once when a container ends, within 30 seconds; it may be asynchronous."""
    _without_parentheses("exit", _misused)
    return _hook("exit", "exit")


class Parameter:
    """A class parameter: the value of an attribute that `parameter()` declares."""

    def __init__(self, default: Any, init: bool) -> None:
        self.default = default
        self.init = init
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is None:
            return self
        if self.default is not REQUIRED:
            return self.default
        raise AttributeError(f"the parameter {self.name} of {type(instance).__name__} has no value")


class _Required:
    def __repr__(self) -> str:
        return "<required>"


REQUIRED: Any = _Required()


def parameter(*, default: Any = REQUIRED, init: bool = True) -> Any:
    """Declares a class parameter: `size: int = farcall.parameter(default=1)`, given as `Model(size=2)`.

    The annotation is str, int, bytes or bool. Parameters are keyword-only; every set of values has containers of its
    own, and equal sets share theirs. With `init=False` the attribute is only annotated, not a parameter.
    """
    return Parameter(default, init)


def concurrent(
    _misused: None = None, /, *, max_inputs: int | None = None, target_inputs: int | None = None
) -> FunctionOrClassDecorator:
    """Lets one container run up to `max_inputs` (1 to 1000) inputs at once: asynchronous functions as tasks on one
    loop, others in threads. Of a batched function it runs so many batches at once.

    `target_inputs`, at most `max_inputs`, is what the autoscaler aims at. For a class it stands under `@app.cls()`.
    """
    _without_parentheses("concurrent", _misused)
    if max_inputs is None:
        raise InvalidError("@farcall.concurrent: max_inputs is missing; write @farcall.concurrent(max_inputs=100)")
    said = concurrency("@farcall.concurrent", max_inputs, target_inputs)

    def decorate(target: Any) -> Any:
        if isinstance(target, type):
            setattr(target, CONCURRENT, said)
            return target  # pyright: ignore[reportUnknownVariableType]
        partial = partial_of(target, "concurrent")
        if partial.is_method:
            raise InvalidError(
                f"{partial.__qualname__}: @farcall.concurrent goes on the class, under @app.cls(), not on a method"
            )
        partial.concurrency = said
        return partial

    return decorate


def batched(_misused: None = None, /, *, max_batch_size: int, wait_ms: int) -> LooseDecorator:
    """Callers pass single items; the function gets lists of up to `max_batch_size` (1 to 1000), and returns such lists.

    A batch that is not full waits `wait_ms` milliseconds (0 to 600000) for more items, whoever calls. If it fails, so
    does the call of each item in it. No default arguments, no generators.
    """
    _without_parentheses("batched", _misused)
    said = batching("@farcall.batched", max_batch_size, wait_ms)

    def decorate(target: Callable[..., Any]) -> PartialFunction[..., Any, Any]:
        partial = partial_of(target, "batched")
        if code_flags(partial.raw) & GENERATOR:
            raise InvalidError(f"{partial.__qualname__}: a generator cannot be @farcall.batched")
        partial.batching = said
        return partial

    return decorate


def _web(decorator: str, custom_domains: Iterable[str] | None) -> LooseDecorator:
    if isinstance(custom_domains, str):
        raise InvalidError(f"@farcall.{decorator}: custom_domains is a list of names, not one string")

    def decorate(target: Callable[..., Any]) -> PartialFunction[..., Any, Any]:
        partial = partial_of(target, decorator)
        partial.is_web = True
        partial.unimplemented += (f"@{decorator}",)
        return partial

    return decorate


def fastapi_endpoint(
    _misused: None = None,
    /,
    *,
    method: str = "GET",
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    docs: bool = False,
    requires_proxy_auth: bool = False,
) -> LooseDecorator:
    """Serves the function over HTTP at `/` with that `method`; FastAPI must be in the image."""
    _without_parentheses("fastapi_endpoint", _misused)
    return _web("fastapi_endpoint", custom_domains)


def asgi_app(
    _misused: None = None,
    /,
    *,
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    requires_proxy_auth: bool = False,
) -> LooseDecorator:
    """Serves the ASGI application that the function returns."""
    _without_parentheses("asgi_app", _misused)
    return _web("asgi_app", custom_domains)


def wsgi_app(
    _misused: None = None,
    /,
    *,
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    requires_proxy_auth: bool = False,
) -> LooseDecorator:
    """Serves the WSGI application that the function returns, one thread for each request."""
    _without_parentheses("wsgi_app", _misused)
    return _web("wsgi_app", custom_domains)


def web_server(
    port: int,
    *,
    startup_timeout: float = 5.0,
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    requires_proxy_auth: bool = False,
) -> LooseDecorator:
    """Forwards HTTP to a server that the function starts on `port` within `startup_timeout` seconds."""
    whole("@farcall.web_server", "port", port, 1, 65535)
    return _web("web_server", custom_domains)


def web_endpoint(*args: Any, **kwargs: Any) -> Any:
    """The old name of `fastapi_endpoint`."""
    deprecated("web_endpoint is now fastapi_endpoint")
    return fastapi_endpoint(*args, **kwargs)


def clustered(*, size: int, rdma: bool = False) -> FunctionOrClassDecorator:
    """Runs each input in `size` containers at once; the result is that of rank 0."""
    whole("@farcall.clustered", "size", size, 1)

    def decorate(target: Any) -> Any:
        if isinstance(target, type):
            setattr(target, CLUSTERED, f"@clustered(size={size})")
            return target  # pyright: ignore[reportUnknownVariableType]
        partial = partial_of(target, "clustered")
        partial.unimplemented += (f"@clustered(size={size})",)
        return partial

    return decorate


def sessioned() -> FunctionOrClassDecorator:
    """Sends the requests of one session to one container of a Server."""

    def decorate(target: Any) -> Any:
        if isinstance(target, type):
            return target  # pyright: ignore[reportUnknownVariableType]
        partial = partial_of(target, "sessioned")
        partial.unimplemented += ("@sessioned",)
        return partial

    return decorate
