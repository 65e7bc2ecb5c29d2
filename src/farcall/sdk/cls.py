"""`Cls`: a class whose instances live in containers, and its instances' handles.

`@app.cls()` replaces a class by a `Cls`; calling it gives an `Instance`, which stands for all containers that hold that
class with those parameters. In such a container `construct` makes the real object.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar, Unpack, cast

from farcall.errors import ExecutionError, InvalidError, UnimplementedError
from farcall.sdk import batches, concurrency, context, ids, parameters, variants
from farcall.sdk.asking import Asking, asks
from farcall.sdk.decorators import CLUSTERED, CONCURRENT, HOOK
from farcall.sdk.entering import Entering, wait
from farcall.sdk.function import Function, MethodInfo, method_info, not_running, registry
from farcall.sdk.partial import PartialFunction
from farcall.sdk.variants import Variation
from farcall.version import __version__

if TYPE_CHECKING:
    from farcall.sdk.app import App
    from farcall.sdk.autoscaler import Autoscaler
    from farcall.sdk.calls import Target
    from farcall.sdk.options import Declaration, VariantOptions
    from farcall.sdk.types import FunctionAutoscalerSettings, FunctionCurrentStats
    from farcall.wire.messages import AddVariant

__all__ = ["Cls"]

P = ParamSpec("P")
T = TypeVar("T", covariant=True)

_making = threading.RLock()  # while an object is made here

HANDLE = "__farcall_instance__"  # attribute of a real object: the Instance that stands for it


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
        self._announcement: AddVariant | None = None  # what makes a variant known
        self.variation: Variation[Cls[P, T]] = Variation(self, None)
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
        for variant in self.variation.known.values():
            variant.unbind()

    def add_unimplemented(self, features: tuple[str, ...]) -> None:
        """Features found missing when the app was built."""
        self._unimplemented = tuple(dict.fromkeys((*self._unimplemented, *features)))

    def _ready(self) -> str:
        if self._unimplemented:
            raise UnimplementedError(
                f"{self.name} cannot be used: it is declared with {', '.join(self._unimplemented)}, "
                f"which farcall {__version__} does not have yet"
            )
        if self._function_id is None and self.variation.changes is not None:
            self._announcement = self.variation.announcement(self.variation.base._ready())
            self._function_id = self._announcement.function_id
            registry[self._function_id] = self
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

        return Target(self._ready(), method, params, f"{self.name}.{method}", self._announcement)

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
        """The same class with other options, in containers of their own; equal variants share theirs."""
        return variants.of(self, self.declaration.variant(f"{self.name}.with_options", options))

    def with_concurrency(self, *, max_inputs: int, target_inputs: int | None = None) -> Cls[P, T]:
        """The same class as if `@concurrent` decorated it, in containers of their own."""
        where = f"{self.name}.with_concurrency"
        said = concurrency.concurrency(where, max_inputs, target_inputs)
        return variants.of(self, self.declaration.marked(where, said, None))

    def with_batching(self, *, max_batch_size: int, wait_ms: int) -> Cls[P, T]:
        """The same class as if `@batched` decorated its one method, in containers of their own."""
        where = f"{self.name}.with_batching"
        said = concurrency.batching(where, max_batch_size, wait_ms)
        declaration = self.declaration.marked(where, None, said)
        if len(self.shape.methods) != 1:
            raise InvalidError(
                f"{where}: only a class with one method can be batched; it has {', '.join(self.shape.methods)}"
            )
        ((method, info),) = self.shape.methods.items()
        if info.is_generator:
            raise InvalidError(f"{self.name}.{method}: a generator cannot be batched")
        if self._raw is not None:
            batches.parameter_names(_raw_attribute(self._raw, method), f"{self.name}.{method}", is_method=True)
        return variants.of(self, declaration)

    def copied(self, declaration: Declaration | None, unimplemented: tuple[str, ...]) -> Cls[P, T]:
        """The same class, declared like that: to become a variant."""
        return Cls(
            self.name,
            self.shape,
            raw=self._raw,
            app=self._app,
            declaration=declaration,
            unimplemented=unimplemented,
        )

    def running_as(self, function_id: str) -> Cls[P, T]:
        """In a container of a variant: the class, as that variant, which the server knows."""
        made = self.copied(self._declaration, self._unimplemented)
        made._function_id = function_id
        registry[function_id] = made
        return made

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
        if self.variation.changes is not None:
            return variants.rebuilt, (self.variation.base, self.variation.changes, self._unimplemented)
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
        self.entering: Entering  # of the object whose own handle this is

    def object(self) -> Any:
        """The local object, made at first use."""
        if self.made is None:
            with _making:
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
    info = state.cls.shape.methods[name]
    if info.is_async and info.is_generator:
        return _entered_stream(made, raw, args, kwargs)
    if info.is_async:
        return _entered_call(made, raw, args, kwargs)
    entering_of(made).blocking(wait)
    return raw(made, *args, **kwargs)


def entering_of(made: Any) -> Entering:
    """The enter hooks of a real object."""
    state: _State = getattr(made, HANDLE).__dict__["_farcall"]
    return state.entering


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
    # In a container the runner runs the hooks.
    state.entering = Entering(made, state.cls.enter_hooks if context.is_local() else ())


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


# --- methods that run here, for `.local`


async def _entered_call(made: Any, raw: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    await entering_of(made).awaited()
    return await raw(made, *args, **kwargs)


async def _entered_stream(
    made: Any, raw: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> AsyncGenerator[Any]:
    await entering_of(made).awaited()
    async for item in raw(made, *args, **kwargs):
        yield item
