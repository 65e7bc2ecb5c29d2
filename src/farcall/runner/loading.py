"""From a Load message to functions that can be called: import, object, hooks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any, NamedTuple, cast

from farcall.errors import InvalidError
from farcall.sdk import context
from farcall.sdk.app import EndOfModule
from farcall.sdk.batches import parameter_names
from farcall.sdk.cls import Cls, Shape
from farcall.sdk.function import MethodInfo
from farcall.sdk.secret import Secret as Secret  # every decorator looks at it: a template's forks have it already
from farcall.spec.function import FunctionSpec, Source
from farcall.wire import messages
from farcall.wire.descriptors import close_all
from farcall.wire.memory import from_memory


class Target(NamedTuple):
    """Something that inputs call."""

    call: Callable[..., Any]
    is_generator: bool
    is_async: bool
    batched: tuple[str, ...] = ()  # the names of its parameters, where each is given a list


class Loaded(NamedTuple):
    """The user's function or object, ready. Hooks take no argument."""

    targets: dict[str, Target]
    enter_hooks: list[Callable[[], Any]]
    exit_hooks: list[Callable[[], Any]]


def load(message: messages.Load, fds: tuple[int, ...]) -> Loaded:
    """Imports the user's code and makes the object; runs no hooks. Raises whatever that raises. Closes `fds`."""
    spec = message.function
    pickled = spec.source.pickled
    try:
        if message.descriptors:
            pickled = from_memory(fds[0])
    finally:
        close_all(fds)
    context.enter_container(message.app_id)
    if spec.compat == "modal":
        from farcall import compat

        compat.install()
    _extend_path(spec.source)
    found = _find(spec.source) if pickled is None else _unpickle(spec.source, pickled)
    if spec.is_class:
        return _load_class(spec, found, message)
    method = spec.methods[0]
    raw = getattr(found, "raw", found)
    if not callable(raw):
        raise InvalidError(f"{spec.source.qualname} in {spec.source.module} is no function here but {found!r}")
    batched = parameter_names(raw, spec.name, is_method=False) if spec.batching is not None else ()
    return Loaded({method.name: Target(raw, method.is_generator, method.is_async, batched)}, [], [])


def _load_class(spec: FunctionSpec, found: Any, message: messages.Load) -> Loaded:
    if isinstance(found, type):  # sent by value: what the decorator made of it stayed at the caller
        methods = {each.name: MethodInfo(each.is_generator, each.is_async) for each in spec.methods}
        by_value: Cls[..., Any] = Cls(spec.name, Shape({}, methods), raw=found)
        by_value.bind(message.app_id)
        found = by_value
    if not isinstance(found, Cls):
        raise InvalidError(f"{spec.source.qualname} in {spec.source.module} is no class under @app.cls() but {found!r}")
    cls = cast("Cls[..., Any]", found)
    if spec.variant_of:
        cls = cls.running_as(spec.function_id)
    made: Any = cls.construct(message.params)
    raw_methods = cls.methods
    targets: dict[str, Target] = {}
    for each in spec.methods:
        if each.name not in raw_methods:
            known = ", ".join(raw_methods)
            raise InvalidError(f"{spec.name} has no method {each.name!r} in the container; it has {known}")
        call = raw_methods[each.name]
        batched = parameter_names(call, spec.name, is_method=True) if spec.batching is not None else ()
        targets[each.name] = Target(partial(call, made), each.is_generator, each.is_async, batched)
    return Loaded(
        targets,
        [partial(hook, made) for hook in cls.enter_hooks],
        [partial(hook, made) for hook in cls.exit_hooks],
    )


def _extend_path(source: Source) -> None:
    """In front of all: what the program's own `sys.path` had in front, so that its modules win as they do there."""
    paths = list(source.paths)
    if source.script is not None:
        paths.insert(0, os.path.dirname(source.script))
    sys.path[:0] = [path for path in dict.fromkeys(paths) if path not in sys.path]


def _find(source: Source) -> Any:
    found: Any = _import(source)
    for name in source.qualname.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise InvalidError(
                f"{source.module} has no {source.qualname} when it is imported in the container: define it at the top "
                "level of the module, under no condition that only holds where the program is started"
            ) from None
    return found


def _import(source: Source) -> ModuleType:
    """The user's module, as far as its top level goes: one that runs its app there ends with that line."""
    name = source.module
    if source.script is None:
        spec = find_spec(name)  # imports the packages it lies in, and they perhaps the module itself
        if name in sys.modules:
            return sys.modules[name]
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    else:
        spec = spec_from_file_location(name, source.script)
    if spec is None or spec.loader is None:
        raise InvalidError(f"{source.script or name} is no Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module
    if source.script is not None or source.is_main:
        # What it pickled as `__main__` is found in it, and the processes that it starts load it as their own.
        sys.modules["__main__"] = module
        sys.argv = [source.script or str(module.__file__)]
    try:
        spec.loader.exec_module(module)
    except EndOfModule:
        pass
    except BaseException:
        del sys.modules[name]
        raise
    package, _, child = name.rpartition(".")
    if package:
        setattr(sys.modules[package], child, sys.modules[name])
    return sys.modules[name]


def _unpickle(source: Source, pickled: bytes) -> Any:
    import pickle

    from farcall.errors import DeserializationError

    if source.module == "__main__":
        # Like the notebook's, it has no file: what is defined in it travels back by value.
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        return pickle.loads(pickled)
    except ModuleNotFoundError:
        raise  # as from an import, so that the caller hears how to send the module
    except Exception as error:
        raise DeserializationError(
            f"{source.qualname} was sent by value and cannot be rebuilt in the container: "
            f"{type(error).__name__}: {error}"
        ) from error
