"""Pickling with code, by cloudpickle, for values that plain pickle cannot send; naming what nothing can send."""

import functools
import importlib
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Protocol, cast

from farcall import _cloudpickle
from farcall.sdk.cls import Cls
from farcall.sdk.function import Function

_registrations: Any = importlib.import_module("farcall._cloudpickle.cloudpickle")

_FILENAME = 10  # the place of co_filename among the arguments of types.CodeType, since Python 3.11
_MAX_DEPTH = 64  # of the search for an offending part
_MAX_REASON = 2000  # characters of the underlying error, and of a path, in a message

_registry = threading.RLock()  # cloudpickle's set of by-value modules belongs to the whole process


class Sink(Protocol):
    """What a pickler writes to."""

    def write(self, part: bytes, /) -> Any: ...


class ByValuePickler(_cloudpickle.CloudPickler):
    """cloudpickle, except for what it sends with its code.

    By value: what cannot be found by name (lambdas, local classes), and classes and functions of `modules` and their
    submodules. By name: all others; also those of a `__main__` that is not one of `modules`, which cloudpickle would
    copy, and so make a second class of.
    """

    def __init__(
        self,
        sink: Sink,
        modules: frozenset[str],
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
    ) -> None:
        super().__init__(sink, protocol=5, buffer_callback=buffer_callback)
        self._modules = modules

    def dump(self, obj: Any) -> None:
        with _registry:
            _cloudpickle.adopt_registrations()
            already: set[str] = _registrations.list_registry_pickle_by_value()
            added = [
                module
                for name in self._modules - already
                if name != "__main__" and isinstance(module := sys.modules.get(name), types.ModuleType)
            ]
            for module in added:
                _registrations.register_pickle_by_value(module)
            try:
                super().dump(obj)
            finally:
                for module in added:
                    _registrations.unregister_pickle_by_value(module)

    def reducer_override(self, obj: Any) -> Any:
        by_name = "__main__" not in self._modules
        if by_name and isinstance(obj, (type, types.FunctionType)) and obj.__module__ == "__main__":
            found: Any = sys.modules["__main__"]
            for name in obj.__qualname__.split("."):
                found = getattr(found, name, None)
            if found is obj:
                return NotImplemented
        if isinstance(obj, types.CodeType):
            make, arguments = _registrations._code_reduce(obj)
            # cloudpickle leaves the file's name out since 3.1.3; tracebacks find the code's lines by it.
            return make, (*arguments[:_FILENAME], obj.co_filename, *arguments[_FILENAME + 1 :])
        if isinstance(obj, (Function, Cls)):
            return self._reduce_handle(obj)  # pyright: ignore[reportUnknownArgumentType]
        reduced: Any = cast(Any, super()).reducer_override(obj)
        if isinstance(obj, type) and isinstance(reduced, tuple) and reduced[-1] is _registrations._class_setstate:  # pyright: ignore[reportUnknownMemberType]
            if obj not in _received:
                _own.add(obj)
            return (*reduced[:-1], _set_class_state)  # pyright: ignore[reportUnknownVariableType]
        return reduced  # pyright: ignore[reportUnknownVariableType]

    def _reduce_handle(self, handle: "Function[..., Any, Any] | Cls[..., Any]") -> Any:
        """Where a module's code travels by value, a handle to another function of it brings that one's code, so that
        its `.local` works there, too."""
        if handle.has_code and cast("Any", handle.raw).__module__ in self._modules:
            return (*handle.__reduce__(), handle.raw, None, None, _give_code)
        return NotImplemented


def _give_code(handle: "Function[..., Any, Any] | Cls[..., Any]", raw: Any) -> None:
    if not handle.has_code:
        handle.adopt(raw)


_own: "weakref.WeakSet[type]" = weakref.WeakSet()  # classes sent by value that were made here
_received: "weakref.WeakSet[type]" = weakref.WeakSet()  # classes that arrived by value


def _set_class_state(cls: type, state: Any) -> type:
    """Fills a class that arrived by value. One that was made here and only comes back stays as it is: the methods that
    arrive with it would see the other side's copies of the globals here."""
    if cls not in _own:
        _received.add(cls)
        _registrations._class_setstate(cls, state)
    return cls


def explain_unpicklable(parts: Iterable[tuple[str, Any]], modules: frozenset[str], error: Exception) -> str:
    """The message for a value that failed to pickle with `error`: the smallest part that fails, as a path, and why.

    `parts` are the value's own parts with their names ('argument 2').
    """
    parts = list(parts)
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        names = parts[0][0] if len(parts) == 1 else "a value"
        return (
            f"{names}: nested too deeply to pickle; flatten it, or raise sys.setrecursionlimit "
            f"(now {sys.getrecursionlimit()})"
        )
    path, reason = _blame(parts, modules) or ("value" if len(parts) != 1 else parts[0][0], error)
    text = str(reason)
    if not isinstance(reason, (TypeError, pickle.PicklingError)):
        text = f"{type(reason).__name__}: {text}"
    advice = "make it inside the function instead of passing it, or pass the data it is made from"
    if parts and parts[0][0].startswith(("result", "item")):
        advice = "a function can return plain data, such as what this is made from; what is open or locked stays there"
    return f"{_shorten(path)}: {_shorten(text)}; {advice}"


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_REASON else f"{text[: _MAX_REASON // 2]} ... {text[-_MAX_REASON // 2 :]}"


class _Discard:
    def write(self, part: bytes, /) -> None:
        pass


def _failure(value: Any, modules: frozenset[str]) -> Exception | None:
    try:
        ByValuePickler(_Discard(), modules, _leave_out).dump(value)
    except Exception as error:
        return error
    return None


def _leave_out(buffer: pickle.PickleBuffer) -> bool:
    return False


def _blame(parts: list[tuple[str, Any]], modules: frozenset[str]) -> tuple[str, Exception] | None:
    """Follows failing parts down to one whose own parts all pickle. None where none of `parts` fails by itself."""
    found: tuple[str, Exception] | None = None
    prefix = ""
    seen: set[int] = set()
    for _ in range(_MAX_DEPTH):
        candidate = _first_failing([part for part in parts if id(part[1]) not in seen], modules)
        if candidate is None:
            return found
        label, value, error = candidate
        prefix += label
        found = prefix, error
        seen.add(id(value))
        parts = list(_children(value))
    return found


def _first_failing(parts: list[tuple[str, Any]], modules: frozenset[str]) -> tuple[str, Any, Exception] | None:
    # Halving, so that one bad element of a million costs twenty picklings of a shrinking list and not a million.
    while parts:
        half = parts[: (len(parts) + 1) // 2]
        error = _failure([value for _, value in half], modules)
        if error is None:
            parts = parts[len(half) :]
        elif len(half) == 1:
            return *half[0], error
        else:
            parts = half
    return None


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    cls = cast("type[object]", type(value))
    if isinstance(value, Mapping):
        for key, item in cast(Mapping[Any, Any], value).items():
            yield f"[{_name(key)}]", item
        for key in cast(Mapping[Any, Any], value):
            yield f" key {_name(key)}", key
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(cast(list[Any], value)):
            yield f"[{index}]", item
    elif isinstance(value, AbstractSet):
        for item in cast(AbstractSet[Any], value):
            yield f" element {_name(item)}", item
    elif isinstance(value, types.FunctionType):
        yield from _function_children(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, functools.partial):
        partial = cast("functools.partial[Any]", value)
        yield ".func", partial.func
        for index, item in enumerate(partial.args):
            yield f".args[{index}]", item
        for key, item in partial.keywords.items():
            yield f".keywords[{key!r}]", item
    whole: Any = cast(Any, value)
    for name, item in getattr(whole, "__dict__", {}).items():
        if name not in ("__dict__", "__weakref__"):
            yield f".{name}", item
    for name in _slots(cls):
        try:
            yield f".{name}", getattr(whole, name)
        except AttributeError:
            continue


def _function_children(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f" closure variable {name!r}", cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f" global {name!r}", function.__globals__[name]
    for index, item in enumerate(function.__defaults__ or ()):
        yield f".__defaults__[{index}]", item


def _slots(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else (str(slot) for slot in slots)


def _name(key: Any) -> str:
    try:
        text = repr(key)
    except Exception:
        return f"<{type(key).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."
