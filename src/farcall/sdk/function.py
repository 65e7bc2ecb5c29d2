"""`Function`: a function that runs in containers of its own, and its handles."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar, Unpack, overload

from farcall.errors import ExecutionError, InvalidError, UnimplementedError
from farcall.sdk import batches, concurrency, context, ids, map_inputs, variants
from farcall.sdk.asking import Asking, asks
from farcall.sdk.function_call import FunctionCall
from farcall.sdk.partial import ASYNC, GENERATOR, PartialFunction, code_flags
from farcall.sdk.twin import StreamTwin, stream_twin, twin
from farcall.sdk.unimplemented import later
from farcall.sdk.variants import Variation
from farcall.version import __version__

if TYPE_CHECKING:
    from farcall.sdk.app import App
    from farcall.sdk.autoscaler import Autoscaler
    from farcall.sdk.calls import Target
    from farcall.sdk.cls import Instance
    from farcall.sdk.options import Declaration, VariantOptions
    from farcall.sdk.types import FunctionAutoscalerSettings, FunctionCurrentStats

__all__ = ["Function"]

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
L = TypeVar("L", covariant=True)
Y = TypeVar("Y")

registry: dict[str, Any] = {}
"""The functions and classes of running apps: id to `Function` or `Cls`."""


class MethodInfo(NamedTuple):
    """How a function or method is called."""

    is_generator: bool
    is_async: bool
    is_web: bool = False


def method_info(
    raw: Callable[..., Any], partial: PartialFunction[Any, Any, Any] | None, forced: bool | None
) -> MethodInfo:
    """What the code says, unless `is_generator=` was given (`forced`)."""
    flags = code_flags(raw)
    if forced is None and partial is not None:
        forced = partial.is_generator
    return MethodInfo(
        is_generator=bool(flags & GENERATOR) if forced is None else forced,
        is_async=bool(flags & ASYNC),
        is_web=partial is not None and partial.is_web,
    )


class _RemoteGen:
    """`Function.remote_gen`: starts a generator in a container and yields what it yields."""

    @overload
    def __get__(
        self, instance: Function[P, Any, Generator[Y, Any, Any]] | Function[P, Any, AsyncGenerator[Y, Any]], owner: Any
    ) -> StreamTwin[P, Y]: ...
    @overload
    def __get__(self, instance: Function[P, Any, Iterable[Y]], owner: Any) -> StreamTwin[P, Y]: ...
    @overload
    def __get__(self, instance: Function[P, Any, Any], owner: Any) -> StreamTwin[P, Any]: ...
    @overload
    def __get__(self, instance: None, owner: Any) -> _RemoteGen: ...
    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is None:
            return self
        return StreamTwin(
            instance._remote_gen,
            instance._remote_gen_async,
            f"{instance.name}.remote_gen",
            "Starts the generator in a container; items arrive as they are made. Abandoning the iterator closes it.",
        )


class Function(Generic[P, R, L]):
    """A function of an app: `f.remote(x)` runs it in a container, `f.local(x)` runs it here.

    `app.function()` makes one. `R` is the result of the remote call, `L` of the local one (a coroutine, for an
    asynchronous function). A Function can be passed to other functions and works there.
    """

    def __init__(
        self,
        name: str,
        *,
        raw: Callable[..., Any] | None = None,
        info: MethodInfo | None = None,
        app: App | None = None,
        declaration: Declaration | None = None,
        instance: Instance | None = None,
        unimplemented: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.raw = raw
        self._info = info
        self._app = app
        self._declaration = declaration
        self._instance = instance
        self._unimplemented = unimplemented
        self._target: Target | None = None
        self.variation: Variation[Function[P, R, L]] = Variation(self, None)
        if raw is not None:
            for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
                setattr(self, attribute, getattr(raw, attribute, None))
            self.__wrapped__ = raw

    # --- what it is

    @property
    def _display_name(self) -> str:
        return self.name

    @property
    def method_name(self) -> str:
        """The method's name in its class, '' for a plain function."""
        return self.name.rpartition(".")[2] if self._instance is not None else ""

    @property
    def object_id(self) -> str:
        """The function's id, `fu-...`; it has one while its app runs."""
        return self._ready().function_id

    @property
    def has_code(self) -> bool:
        """Whether the user's function is here; it is not where a handle arrived."""
        return self.raw is not None

    def adopt(self, raw: Callable[..., Any]) -> None:
        """The user's function has arrived, after its handle."""
        self.raw = self.__wrapped__ = raw

    @property
    def app(self) -> App:
        """The app in which the function was declared."""
        if self._app is None:
            raise ExecutionError(f"{self.name} is a handle: its app is not known here")
        return self._app

    @property
    def info_of_code(self) -> MethodInfo:
        """How it is called: generator or not, asynchronous or not."""
        if self._info is None:
            from farcall.sdk import client

            spec = client.current().lookup(self._ready().function_id)
            self._info = MethodInfo(spec.methods[0].is_generator, spec.methods[0].is_async)
        return self._info

    @property
    def declaration(self) -> Declaration:
        """What the decorator said."""
        if self._declaration is None:
            raise ExecutionError(f"{self.name} is a handle: its declaration is not known here")
        return self._declaration

    @property
    def marks(self) -> tuple[str, ...]:
        """The features of other decorators that this version does not have."""
        return self._unimplemented

    # --- life with an app

    def bind(self, app_id: str) -> None:
        """The app runs, under that id: from now on the function can be called."""
        from farcall.sdk.calls import Target

        function_id = ids.function_id(app_id, self.name, is_class=False)
        self._target = Target(function_id, "", b"", self.name)
        registry[function_id] = self

    def unbind(self) -> None:
        """The app has stopped."""
        if self._target is not None:
            registry.pop(self._target.function_id, None)
            self._target = None
        for variant in self.variation.known.values():
            variant.unbind()

    def add_unimplemented(self, features: tuple[str, ...]) -> None:
        """Features found missing when the app was built."""
        self._unimplemented = tuple(dict.fromkeys((*self._unimplemented, *features)))

    def _ready(self) -> Target:
        """What to call, or the reason why it cannot be called."""
        if self._unimplemented:
            raise UnimplementedError(
                f"{self.name} cannot be called: it is declared with {', '.join(self._unimplemented)}, "
                f"which farcall {__version__} does not have yet"
            )
        if self._target is not None:
            return self._target
        if self._instance is not None:
            from farcall.sdk import cls

            self._target = cls.target_of(self._instance, self.method_name)
            return self._target
        if self.variation.changes is not None:
            from farcall.sdk.calls import Target

            said = self.variation.announcement(self.variation.base._ready().function_id)
            self._target = Target(said.function_id, "", b"", self.name, said)
            registry[said.function_id] = self
            return self._target
        app_id = context.container_app_id()
        if app_id is not None and self._app is not None:
            self.bind(app_id)
            assert self._target is not None
            return self._target
        raise not_running(self.name, self._app)

    def _callable(self, form: str, generator: bool) -> Target:
        target = self._target if self._target is not None and not self._unimplemented else self._ready()
        info = self._info or self.info_of_code
        if info.is_web:
            raise InvalidError(f"{self.name} is a web endpoint: it is called through its URL, not with .{form}")
        if info.is_generator and not generator:
            raise InvalidError(
                f"{self.name} is a generator: write `for item in {self.name}.remote_gen(...)` in place of .{form}"
            )
        if generator and not info.is_generator:
            raise InvalidError(
                f"{self.name} is not a generator: write {self.name}.remote(...) in place of .{form}; a plain function "
                "that returns a generator is declared with is_generator=True"
            )
        return target

    # --- calls

    @twin
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function in a container and returns its result, or raises its exception."""
        from farcall.sdk import calls

        return calls.remote(self._callable("remote", False), args, kwargs)

    @remote.awaited
    async def _remote_async(self, *args: P.args, **kwargs: P.kwargs) -> R:
        from farcall.sdk import calls

        return await calls.remote_async(self._callable("remote", False), args, kwargs)

    remote_gen = _RemoteGen()

    def _remote_gen(self, *args: Any, **kwargs: Any) -> Generator[Any]:
        from farcall.sdk import calls

        return calls.remote_gen(self._callable("remote_gen", True), args, kwargs)

    def _remote_gen_async(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        from farcall.sdk import calls

        return calls.remote_gen_async(self._callable("remote_gen", True), args, kwargs)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> L:
        """Runs the function in this process; a class's enter hooks run before its first method does."""
        if self._instance is not None:
            from farcall.sdk import cls

            return cls.run_local(self._instance, self.method_name, args, kwargs)
        if self.raw is None:
            raise ExecutionError(f"{self.name} is a handle: its code is not here. Write {self.name}.remote(...)")
        return self.raw(*args, **kwargs)

    @twin
    def spawn(self, *args: P.args, **kwargs: P.kwargs) -> FunctionCall[R]:
        """Starts a call that goes on by itself, and survives a restart of the server; its result is kept 7 days."""
        from farcall.sdk import calls

        return FunctionCall(calls.spawn(self._callable("spawn", False), args, kwargs), 1)

    @spawn.awaited
    async def _spawn_async(self, *args: P.args, **kwargs: P.kwargs) -> FunctionCall[R]:
        from farcall.sdk import calls

        return FunctionCall(await calls.spawn_async(self._callable("spawn", False), args, kwargs), 1)

    @stream_twin
    def map(
        self,
        *input_iterators: Iterable[Any] | AsyncIterable[Any],
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool | None = None,
    ) -> Generator[R, None, None]:
        """Runs the function once for each item, in parallel; yields results in the inputs' order, or as they come.

        One iterable for each positional argument, read as the inputs are sent, at most about 1000 ahead. `kwargs` go to
        each. The first failure is raised and cancels the rest, unless `return_exceptions` puts it among the results.
        Asynchronous iterables are for `.aio`.
        """
        return self._map("map", input_iterators, kwargs, order_outputs, return_exceptions)

    @map.asynchronous
    def _map_async(
        self,
        *input_iterators: Iterable[Any] | AsyncIterable[Any],
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool | None = None,
    ) -> AsyncGenerator[R, None]:
        return self._amap("map", input_iterators, kwargs, order_outputs, return_exceptions)

    @stream_twin
    def starmap(
        self,
        input_iterator: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]],
        /,
        *,
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool | None = None,
    ) -> Generator[R, None, None]:
        """`map` over one iterable whose items are the sequences of arguments."""
        return self._map("starmap", (input_iterator,), kwargs, order_outputs, return_exceptions, star=True)

    @starmap.asynchronous
    def _starmap_async(
        self,
        input_iterator: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]],
        /,
        *,
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool | None = None,
    ) -> AsyncGenerator[R, None]:
        return self._amap("starmap", (input_iterator,), kwargs, order_outputs, return_exceptions, star=True)

    @twin
    def for_each(
        self,
        *input_iterators: Iterable[Any] | AsyncIterable[Any],
        kwargs: Mapping[str, Any] = {},
        ignore_exceptions: bool = False,
    ) -> None:
        """`map` for its effects: waits for all and returns nothing; `ignore_exceptions` goes on after failures."""
        for _ in self._map("for_each", input_iterators, kwargs, False, ignore_exceptions):
            pass

    @for_each.awaited
    async def _for_each_async(
        self,
        *input_iterators: Iterable[Any] | AsyncIterable[Any],
        kwargs: Mapping[str, Any] = {},
        ignore_exceptions: bool = False,
    ) -> None:
        async for _ in self._amap("for_each", input_iterators, kwargs, False, ignore_exceptions):
            pass

    @twin
    def spawn_map(self, *input_iterators: Iterable[Any], kwargs: Mapping[str, Any] = {}) -> FunctionCall[R]:
        """Starts one call with an input for each item, without waiting for results, and returns its handle."""
        from farcall.sdk import calls

        target = self._callable("spawn_map", False)
        map_inputs.check_kwargs(self.name, "spawn_map", kwargs)
        return FunctionCall(
            *calls.spawn_map(target, map_inputs.blocking(self.name, "spawn_map", input_iterators), kwargs)
        )

    @spawn_map.awaited
    async def _spawn_map_async(
        self, *input_iterators: Iterable[Any], kwargs: Mapping[str, Any] = {}
    ) -> FunctionCall[R]:
        import asyncio

        from farcall.sdk import calls

        target = self._callable("spawn_map", False)
        map_inputs.check_kwargs(self.name, "spawn_map", kwargs)
        iterables = map_inputs.blocking(self.name, "spawn_map", input_iterators)
        return FunctionCall(*await asyncio.to_thread(calls.spawn_map, target, iterables, kwargs))

    experimental_spawn_map = spawn_map

    def _map(
        self,
        form: str,
        iterables: Sequence[Iterable[Any] | AsyncIterable[Any]],
        kwargs: Mapping[str, Any],
        order_outputs: bool,
        return_exceptions: bool,
        star: bool = False,
    ) -> Generator[R, None, None]:
        from farcall.sdk import calls

        target = self._callable(form, False)
        map_inputs.check_kwargs(self.name, form, kwargs)
        inputs = map_inputs.blocking(self.name, form, iterables)
        if star:
            inputs = (map_inputs.checked_rows(self.name, inputs[0]),)
        return calls.map_(target, inputs, kwargs, order_outputs, return_exceptions, star)

    def _amap(
        self,
        form: str,
        iterables: Sequence[Iterable[Any] | AsyncIterable[Any]],
        kwargs: Mapping[str, Any],
        order_outputs: bool,
        return_exceptions: bool,
        star: bool = False,
    ) -> AsyncGenerator[R, None]:
        from farcall.sdk import calls

        target = self._callable(form, False)
        map_inputs.check_kwargs(self.name, form, kwargs)
        map_inputs.check_iterables(self.name, form, iterables)
        if star:
            iterables = (map_inputs.checked_rows(self.name, iterables[0]),)
        return calls.map_async(target, iterables, kwargs, order_outputs, return_exceptions, star)

    # --- variants and handles

    def with_options(self, **options: Unpack[VariantOptions]) -> Function[P, R, L]:
        """The same function with other options, in containers of their own; equal variants share theirs."""
        return variants.of(self, self._declared("with_options").variant(f"{self.name}.with_options", options))

    def with_concurrency(self, *, max_inputs: int, target_inputs: int | None = None) -> Function[P, R, L]:
        """The same function as if `@concurrent` decorated it, in containers of their own."""
        where = f"{self.name}.with_concurrency"
        said = concurrency.concurrency(where, max_inputs, target_inputs)
        return variants.of(self, self._declared("with_concurrency").marked(where, said, None))

    def with_batching(self, *, max_batch_size: int, wait_ms: int) -> Function[P, R, L]:
        """The same function as if `@batched` decorated it, in containers of their own."""
        where = f"{self.name}.with_batching"
        said = concurrency.batching(where, max_batch_size, wait_ms)
        declaration = self._declared("with_batching").marked(where, None, said)
        if self.info_of_code.is_generator:
            raise InvalidError(f"{self.name}: a generator cannot be batched")
        if self.raw is not None:
            batches.parameter_names(self.raw, self.name, is_method=False)
        return variants.of(self, declaration)

    def _declared(self, form: str) -> Declaration:
        if self._instance is not None:
            name, _, method = self.name.rpartition(".")
            raise InvalidError(f"{self.name} is a method: write {name}.{form}(...)(...).{method}")
        return self.declaration

    def copied(self, declaration: Declaration | None, unimplemented: tuple[str, ...]) -> Function[P, R, L]:
        """The same function, declared like that: to become a variant."""
        return Function(
            self.name,
            raw=self.raw,
            info=self._info,
            app=self._app,
            declaration=declaration,
            unimplemented=unimplemented,
        )

    @classmethod
    def from_name(
        cls,
        app_name: str,
        name: str,
        *,
        version: int | None = None,
        environment_name: str | None = None,
        client: Any = None,
    ) -> Function[..., Any, Any]:
        """A handle to a function of a deployed app; nothing is looked up before it is used."""
        if "." in name:
            raise InvalidError(f"{name!r} is a method: write Cls.from_name({app_name!r}, {name.partition('.')[0]!r})")
        return Function(
            name, info=MethodInfo(False, False), unimplemented=(f"Function.from_name({app_name!r}, {name!r})",)
        )

    @classmethod
    def from_id(cls, function_id: str, *, client: Any = None) -> Function[..., Any, Any]:
        """A handle to the function with that id; nothing is looked up before it is used."""
        if not isinstance(function_id, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidError(
                f"Function.from_id takes a function's id, a str that starts with fu-, not {function_id!r}"
            )
        if not function_id.startswith("fu-"):
            raise InvalidError(f"{function_id!r} is not a function's id, which starts with fu-")
        return handle(function_id, function_id, None, ())

    # --- its containers

    @property
    def autoscaler(self) -> Autoscaler:
        """The bounds of its pool of containers, to be asked for and changed."""
        from farcall.sdk.autoscaler import Autoscaler

        if self._instance is not None:
            raise InvalidError(
                f"{self.name} shares its containers with all methods of its class: write "
                f"{self.name.partition('.')[0]}(...).update_autoscaler(...), without the method"
            )
        return Autoscaler(self._ready())

    @asks
    def update_autoscaler(
        self,
        *,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: float | None = None,
    ) -> Asking[FunctionAutoscalerSettings]:
        """Changes bounds of its pool of containers until the app is deployed again; None keeps one as it is.

        Returns those that hold then. Raises InvalidError for values that cannot be, and for a method: its class's
        instance has the containers.
        """
        from farcall.sdk import autoscaler

        changes = autoscaler.given(min_containers, max_containers, buffer_containers, scaledown_window)
        return (yield from autoscaler.update(self.autoscaler.target, changes))

    @asks
    def get_current_stats(self) -> Asking[FunctionCurrentStats]:
        """How many inputs wait and run, and how many containers there are. A method's are those of its instance."""
        from farcall.sdk import autoscaler

        return (yield from autoscaler.current_stats(self._ready()))

    @later
    def stats(self) -> Any:
        """Counts and percentiles over a time."""

    @later
    def info(self) -> Any:
        """The function's resources, mounts and secrets."""

    @later
    def logs(self) -> Any:
        """What the function's containers printed."""

    @later
    def metrics(self) -> Any:
        """The function's time series."""

    @later
    def get_web_url(self) -> Any:
        """The URL of a web endpoint."""

    # --- as an object

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise InvalidError(
            f"{self.name}(...) is ambiguous: write {self.name}.remote(...) to run it in a container, "
            f"{self.name}.local(...) to run it here"
        )

    def __get__(self, instance: Any, owner: Any) -> Function[P, R, L]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._instance is not None:
            from farcall.sdk import cls

            return cls.method_of, (self._instance, self.method_name)
        if self.variation.changes is not None:
            return variants.rebuilt, (self.variation.base, self.variation.changes, self._unimplemented)
        try:
            function_id = self._ready().function_id
        except (InvalidError, UnimplementedError):
            function_id = None
        return handle, (function_id, self.name, self._info, self._unimplemented)

    def __repr__(self) -> str:
        running = f" {self._target.function_id}" if self._target is not None else ""
        return f"<farcall.Function {self.name}{running}>"


def handle(
    function_id: str | None, name: str, info: MethodInfo | None, unimplemented: tuple[str, ...]
) -> Function[..., Any, Any]:
    """The function with that id: the declared one where it is known in this process, else a handle."""
    known = registry.get(function_id or "")
    if isinstance(known, Function):
        return known  # pyright: ignore[reportUnknownVariableType]
    function: Function[..., Any, Any] = Function(name, info=info, unimplemented=unimplemented)
    if function_id is not None:
        from farcall.sdk.calls import Target

        function._target = Target(function_id, "", b"", name)  # pyright: ignore[reportPrivateUsage]
    return function


def not_running(name: str, app: App | None) -> InvalidError:
    """The error of a call to something whose app does not run."""
    if app is not None and app.is_running:
        return InvalidError(f"{name} was added to its app after app.run() began; declare it before")
    return InvalidError(
        f"{name} cannot be called: its app is not running. Call it inside `with app.run():`, or from a function under "
        "@app.local_entrypoint() started with `farcall run FILE`"
    )
