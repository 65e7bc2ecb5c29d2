"""`Cls`: a class whose instances live in containers, and its instances' handles.

`@app.cls()` replaces a class by a `Cls`; calling it gives an `Instance`, which stands for all containers that hold that
class with those parameters. In such a container `construct` makes the real object.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar, Unpack, cast

from farcall.errors import ExecutionError, InvalidError, UnimplementedError
from farcall.sdk import batches, context, ids, parameters
from farcall.sdk.asking import Asking, asks
from farcall.sdk.decorators import CLUSTERED, CONCURRENT, HOOK
from farcall.sdk.function import Function, MethodInfo, method_info, not_running, registry
from farcall.sdk.partial import PartialFunction
from farcall.version import __version__

if TYPE_CHECKING:
    from farcall.sdk.app import App
    from farcall.sdk.autoscaler import Autoscaler
    from farcall.sdk.calls import Target
    from farcall.sdk.options import Declaration, VariantOptions
    from farcall.sdk.types import FunctionAutoscalerSettings, FunctionCurrentStats

__all__ = ["Cls"]

P = ParamSpec("P")
T = TypeVar("T", covariant=True)

HANDLE = "__farcall_instance__"  # attribute of a real object: the Instance that stands for it
ENTERED = "__farcall_entered__"  # attribute of a real object made here, whose enter hooks have run


class Shape(NamedTuple):
    """What a caller must know of a class: parameters (name to type name and default) and methods."""

    parameters: dict[str, tuple[str, Any]]
    methods: dict[str, MethodInfo]


class Cls(Generic[P, T]):
    """A class of an app. `Model(size=2)` is a handle to it, whose methods run in containers: `.predict.remote(x)`.

    For type checkers the decorated name is still the class itself; this is what it is at run time.
    """

    def __init__(
        self,
        name: str,
        shape: Shape,
        *,
        raw: type | None = None,
        app: App | None = None,
        declaration: Declaration | None = None,
        unimplemented: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.shape = shape
        self._raw = raw
        self._app = app
        self._declaration = declaration
        self._unimplemented = unimplemented
        self._function_id: str | None = None
        if raw is not None:
            for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
                setattr(self, attribute, getattr(raw, attribute, None))
            self.__wrapped__ = raw

    # --- what it is

    @property
    def raw(self) -> type:
        """The user's class."""
        if self._raw is None:
            raise ExecutionError(f"{self.name} is a handle: its code is not here")
        return self._raw

    @property
    def has_code(self) -> bool:
        """Whether the user's class is here; it is not where a handle arrived."""
        return self._raw is not None

    def adopt(self, raw: type) -> None:
        """The user's class has arrived, after its handle."""
        self._raw = self.__wrapped__ = raw

    @property
    def app(self) -> App:
        """The app in which the class was declared."""
        if self._app is None:
            raise ExecutionError(f"{self.name} is a handle: its app is not known here")
        return self._app

    @property
    def object_id(self) -> str:
        """The class's id, `cs-...`; it has one while its app runs."""
        return self._ready()

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

    @property
    def methods(self) -> dict[str, Callable[..., Any]]:
        """The user's remote methods: name to plain function, inherited ones included."""
        return {name: _raw_attribute(self.raw, name) for name in self.shape.methods}

    @property
    def enter_hooks(self) -> list[Callable[..., Any]]:
        """Plain functions to call with the object when a container starts: snap ones first, base classes' first."""
        return _hooks(self.raw, "enter-snap") + _hooks(self.raw, "enter")

    @property
    def exit_hooks(self) -> list[Callable[..., Any]]:
        """Plain functions to call with the object when a container ends, base classes' first."""
        return _hooks(self.raw, "exit")

    def construct(self, params: bytes) -> Any:
        """The real object with these parameters, as a container holds it. Runs no hooks."""
        arguments = parameters.loads(self.name, params)
        if isinstance(arguments, dict):
            made = self.raw()
            for name, value in cast("dict[str, Any]", arguments).items():
                setattr(made, name, value)
        else:
            args, kwargs = arguments
            made = self.raw(*args, **kwargs)
        _set_handle(made, Instance(self, params))
        return made

    # --- life with an app

    def bind(self, app_id: str) -> None:
        """The app runs, under that id."""
        self._function_id = ids.function_id(app_id, self.name, is_class=True)
        registry[self._function_id] = self

    def unbind(self) -> None:
        """The app has stopped."""
        if self._function_id is not None:
            registry.pop(self._function_id, None)
            self._function_id = None

    def add_unimplemented(self, features: tuple[str, ...]) -> None:
        """Features found missing when the app was built."""
        self._unimplemented = tuple(dict.fromkeys((*self._unimplemented, *features)))

    def _ready(self) -> str:
        if self._unimplemented:
            raise UnimplementedError(
                f"{self.name} cannot be used: it is declared with {', '.join(self._unimplemented)}, "
                f"which farcall {__version__} does not have yet"
            )
        if self._function_id is None:
            app_id = context.container_app_id()
            if app_id is None or self._app is None:
                raise not_running(self.name, self._app)
            self.bind(app_id)
            assert self._function_id is not None
        return self._function_id

    def target(self, params: bytes, method: str) -> Target:
        """What to call for one of its methods."""
        from farcall.sdk.calls import Target

        return Target(self._ready(), method, params, f"{self.name}.{method}")

    # --- use

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """A handle to the class with these arguments; nothing is started."""
        return cast("T", Instance(self, self._encode(args, kwargs)))

    def _encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        if self.shape.parameters:
            return parameters.dumps(self.name, parameters.values(self.name, self.shape.parameters, args, kwargs))
        if self._raw is not None and self._raw.__init__ is object.__init__:
            if args or kwargs:
                raise InvalidError(
                    f"{self.name}() takes no arguments; declare them as `name: str = farcall.parameter()` in the class"
                )
            return parameters.NONE
        if self._raw is not None:
            parameters.check_signature(self.name, self._raw, args, kwargs)
        return (
            parameters.dumps(self.name, (tuple(args), dict(sorted(kwargs.items()))))
            if args or kwargs
            else parameters.NONE
        )

    def with_options(self, **options: Unpack[VariantOptions]) -> Cls[P, T]:
        """The same class with other resources, in containers of their own."""
        return self._variant("with_options", self.declaration.variant(f"{self.name}.with_options", options))

    def with_concurrency(self, *, max_inputs: int, target_inputs: int | None = None) -> Cls[P, T]:
        """The same class as if `@concurrent` decorated it."""
        return self._variant(f"with_concurrency(max_inputs={max_inputs})", self.declaration)

    def with_batching(self, *, max_batch_size: int, wait_ms: int) -> Cls[P, T]:
        """The same class as if `@batched` decorated its method."""
        return self._variant(f"with_batching(max_batch_size={max_batch_size})", self.declaration)

    def _variant(self, feature: str, declaration: Declaration) -> Cls[P, T]:
        return Cls(
            self.name,
            self.shape,
            raw=self._raw,
            app=self._app,
            declaration=declaration,
            unimplemented=(*self._unimplemented, feature),
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
    ) -> Cls[..., Any]:
        """A handle to a class of a deployed app; nothing is looked up before it is used."""
        return Cls(name, Shape({}, {}), unimplemented=(f"Cls.from_name({app_name!r}, {name!r})",))

    # --- as an object

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or self._raw is None:
            raise AttributeError(f"the class {self.name} has no attribute {name!r}")
        if name in self.shape.methods:
            raise AttributeError(
                f"{self.name}.{name} is a method of instances: write {self.name}().{name}, with parentheses"
            )
        return getattr(self._raw, name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (self.raw,)

    def __instancecheck__(self, instance: Any) -> bool:
        if isinstance(instance, Instance):
            return _class_of(instance).name == self.name
        return self._raw is not None and isinstance(instance, self._raw)

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            function_id = self._ready()
        except (InvalidError, UnimplementedError):
            function_id = None
        return _handle, (function_id, self.name, self.shape, self._unimplemented)

    def __repr__(self) -> str:
        running = f" {self._function_id}" if self._function_id is not None else ""
        return f"<farcall.Cls {self.name}{running}>"


def _handle(function_id: str | None, name: str, shape: Shape, unimplemented: tuple[str, ...]) -> Cls[..., Any]:
    known = registry.get(function_id or "")
    if isinstance(known, Cls):
        return known  # pyright: ignore[reportUnknownVariableType]
    made: Cls[..., Any] = Cls(name, shape, unimplemented=unimplemented)
    made._function_id = function_id  # pyright: ignore[reportPrivateUsage]
    return made


class Instance:
    """A handle to a class with parameters. Its methods are Functions; its other attributes exist only here, on an
    object made when one of them or a method's `.local` is first used. All names are the user's own."""

    def __init__(self, cls: Cls[..., Any], params: bytes) -> None:
        # Through __dict__ because attribute access is the user's: __setattr__ forwards.
        self.__dict__["_farcall"] = _State(cls, params)

    def __getattr__(self, name: str) -> Any:
        state: _State | None = self.__dict__.get("_farcall")
        if state is None or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        if name in state.cls.shape.methods:
            return _method(state, self, name)
        if name in _OF_INSTANCES and not hasattr(state.cls.raw if state.cls.has_code else None, name):
            return getattr(_Containers(state), name)
        if not state.cls.has_code:
            if state.cls.marks and not state.cls.shape.methods:  # not looked up: it may be a method
                unknown: Function[..., Any, Any] = Function(name, instance=self, unimplemented=state.cls.marks)
                return unknown
            known = ", ".join(state.cls.shape.methods)
            raise AttributeError(
                f"{state.cls.name} is a handle: it has no method {name!r}; it has {known}", name=name, obj=self
            )
        return getattr(state.object(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        state: _State = self.__dict__["_farcall"]
        setattr(state.object(), name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        state: _State = self.__dict__["_farcall"]
        return Instance, (state.cls, state.params)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Instance):
            return False
        mine: _State = self.__dict__["_farcall"]
        theirs: _State = other.__dict__["_farcall"]
        return mine.cls is theirs.cls and mine.params == theirs.params

    def __hash__(self) -> int:
        state: _State = self.__dict__["_farcall"]
        return hash((id(state.cls), state.params))

    def __repr__(self) -> str:
        state: _State = self.__dict__["_farcall"]
        arguments = parameters.loads(state.cls.name, state.params)
        if isinstance(arguments, dict):
            shown = [f"{name}={value!r}" for name, value in cast("dict[str, Any]", arguments).items()]
        else:
            shown = [repr(value) for value in arguments[0]] + [f"{k}={v!r}" for k, v in arguments[1].items()]
        return f"<farcall instance {state.cls.name}({', '.join(shown)})>"


class _Containers:
    """What an Instance has for its pool of containers, where the user's class has nothing of that name."""

    def __init__(self, state: _State) -> None:
        self._state = state

    @property
    def _display_name(self) -> str:
        return self._state.cls.name

    @property
    def autoscaler(self) -> Autoscaler:
        """The bounds of its pool of containers, to be asked for and changed."""
        from farcall.sdk.autoscaler import Autoscaler

        return Autoscaler(self._target())

    @asks
    def update_autoscaler(
        self,
        *,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: float | None = None,
    ) -> Asking[FunctionAutoscalerSettings]:
        """`Function.update_autoscaler` for the containers of a class with these parameters."""
        from farcall.sdk import autoscaler

        changes = autoscaler.given(min_containers, max_containers, buffer_containers, scaledown_window)
        return (yield from autoscaler.update(self._target(), changes))

    @asks
    def get_current_stats(self) -> Asking[FunctionCurrentStats]:
        """`Function.get_current_stats` for the containers of a class with these parameters."""
        from farcall.sdk import autoscaler

        return (yield from autoscaler.current_stats(self._target()))

    def _target(self) -> Target:
        target = self._state.cls.target(self._state.params, "")
        return target._replace(name=self._state.cls.name)


_OF_INSTANCES = ("autoscaler", "update_autoscaler", "get_current_stats")


class _State:
    """What an Instance holds, kept apart from the user's attribute names."""

    def __init__(self, cls: Cls[..., Any], params: bytes) -> None:
        self.cls = cls
        self.params = params
        self.methods: dict[str, Function[..., Any, Any]] = {}
        self.made: Any = None

    def object(self) -> Any:
        """The local object, made at first use."""
        if self.made is None:
            self.made = self.cls.construct(self.params)
        return self.made


def method_of(instance: Instance, name: str) -> Function[..., Any, Any]:
    """The remote method of that name."""
    return _method(instance.__dict__["_farcall"], instance, name)


def target_of(instance: Instance, name: str) -> Target:
    """What to call for the remote method of that name."""
    state: _State = instance.__dict__["_farcall"]
    return state.cls.target(state.params, name)


def run_local(instance: Instance, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs a method on the local object, after the enter hooks where it is the first."""
    state: _State = instance.__dict__["_farcall"]
    raw = _raw_attribute(state.cls.raw, name)
    made = state.object()
    if getattr(made, ENTERED, False):
        return raw(made, *args, **kwargs)
    info = state.cls.shape.methods[name]
    if info.is_async and info.is_generator:
        return _entered_stream(state.cls, made, raw, args, kwargs)
    if info.is_async:
        return _entered_call(state.cls, made, raw, args, kwargs)
    _enter_blocking(state.cls, made)
    return raw(made, *args, **kwargs)


def _class_of(instance: Instance) -> Cls[..., Any]:
    state: _State = instance.__dict__["_farcall"]
    return state.cls


def _method(state: _State, instance: Instance, name: str) -> Function[..., Any, Any]:
    found = state.methods.get(name)
    if found is None:
        info = state.cls.shape.methods.get(name)
        if info is None:
            known = ", ".join(state.cls.shape.methods)
            raise AttributeError(
                f"{state.cls.name} has no remote method {name!r}; it has {known}", name=name, obj=instance
            )
        found = state.methods[name] = Function(f"{state.cls.name}.{name}", info=info, instance=instance)
    return found


def bound_method(instance: Any, name: str) -> Function[..., Any, Any]:
    """The Function for `self.name` on a real object: in a container, or on one made here."""
    handle = getattr(instance, HANDLE, None)
    if handle is None:
        raise InvalidError(
            f"{type(instance).__name__}.{name} is a remote method, and this object was not made by a class under "
            "@app.cls()"
        )
    return method_of(handle, name)


def _set_handle(made: Any, instance: Instance) -> None:
    state: _State = instance.__dict__["_farcall"]
    state.made = made
    try:
        object.__setattr__(made, HANDLE, instance)
    except AttributeError:
        raise InvalidError(
            f"{type(made).__name__}: a class under @app.cls() cannot have __slots__ without __dict__"
        ) from None
    if not context.is_local():
        object.__setattr__(made, ENTERED, True)  # the runner runs the hooks


# --- declaring


def declare(raw: Any, app: App, declaration: Declaration, is_known_module: Callable[[str], bool]) -> Cls[..., Any]:
    """The Cls that `@app.cls()` makes of a class.

    Raises:
        InvalidError: what cannot be declared, and how to write it.
    """
    if not isinstance(raw, type):
        raise InvalidError(f"@app.cls() decorates a class, not {raw!r}; for functions write @app.function()")
    name = raw.__qualname__
    if "<locals>" in name and not declaration.serialized and is_known_module(raw.__module__):
        raise InvalidError(
            f"{name} is defined inside a function, where a container cannot import it: move it to the top of the "
            "module, or declare it with @app.cls(serialized=True)"
        )
    methods = _remote_methods(raw)
    shape = Shape(parameters.declared(raw), {name: info for name, (info, _) in methods.items()})
    if shape.parameters and raw.__init__ is not object.__init__:
        raise InvalidError(
            f"{raw.__qualname__} has both parameter() and its own __init__: use parameters, and move what __init__ "
            "does into a method under @farcall.enter()"
        )
    features = [mark for _, partial in methods.values() for mark in partial.unimplemented]
    if CLUSTERED in vars(raw):
        features.append(vars(raw)[CLUSTERED])
    batched = [partial for _, partial in methods.values() if partial.batching is not None]
    if batched and len(methods) > 1:
        raise InvalidError(f"{name}: a class with a @farcall.batched method can have no other method")
    declaration = declaration.marked(name, vars(raw).get(CONCURRENT), batched[0].batching if batched else None)
    for method in batched:
        batches.parameter_names(_raw_attribute(raw, method.__name__), f"{name}.{method.__name__}", is_method=True)
    return Cls(
        name.rpartition("<locals>.")[2],
        shape,
        raw=raw,
        app=app,
        declaration=declaration,
        unimplemented=tuple(dict.fromkeys((*declaration.unimplemented, *features))),
    )


def _remote_methods(raw: type) -> dict[str, tuple[MethodInfo, PartialFunction[Any, Any, Any]]]:
    """Remote methods by name, inherited ones too. A subclass may override one without decorating it again."""
    found: dict[str, tuple[MethodInfo, PartialFunction[Any, Any, Any]]] = {}
    for base in reversed(raw.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Function):
                raise InvalidError(
                    f"{raw.__qualname__}.{name}: methods are decorated with @farcall.method(), not @app.function()"
                )
            if isinstance(value, PartialFunction):
                found[name] = (method_info(value.raw, cast("Any", value), None), cast("Any", value))
    return {
        name: (method_info(_raw_attribute(raw, name), partial, None), partial) for name, (_, partial) in found.items()
    }


def _raw_attribute(raw: type, name: str) -> Callable[..., Any]:
    value: Any = getattr(raw, name)
    return value.raw if isinstance(value, PartialFunction) else value


def _hooks(raw: type, kind: str) -> list[Callable[..., Any]]:
    names: dict[str, None] = {}
    for base in reversed(raw.__mro__):
        for name, value in vars(base).items():
            if kind in getattr(value, HOOK, ()):
                names[name] = None
    return [getattr(raw, name) for name in names]


# --- running hooks here, for `.local`


def _enter_blocking(cls: Cls[..., Any], made: Any) -> None:
    object.__setattr__(made, ENTERED, True)
    for hook in cls.enter_hooks:
        result = hook(made)
        if hasattr(result, "__await__"):
            _wait(result)


async def _enter(cls: Cls[..., Any], made: Any) -> None:
    if getattr(made, ENTERED, False):
        return
    object.__setattr__(made, ENTERED, True)
    for hook in cls.enter_hooks:
        result = hook(made)
        if hasattr(result, "__await__"):
            await result


async def _entered_call(
    cls: Cls[..., Any], made: Any, raw: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    await _enter(cls, made)
    return await raw(made, *args, **kwargs)


async def _entered_stream(
    cls: Cls[..., Any], made: Any, raw: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> AsyncGenerator[Any]:
    await _enter(cls, made)
    async for item in raw(made, *args, **kwargs):
        yield item


def _wait(result: Any) -> None:
    """Runs an asynchronous hook to its end from synchronous code."""
    import asyncio

    async def wait() -> None:
        await result

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(wait())
        return
    import threading

    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(wait())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
