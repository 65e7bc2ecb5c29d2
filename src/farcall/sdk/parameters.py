"""The arguments of classes: what `parameter()` declares, checked, and as the bytes that name a pool of containers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from farcall.errors import DeserializationError, InvalidError, SerializationError
from farcall.sdk.decorators import REQUIRED, Parameter

TYPES: dict[str, type] = {"str": str, "int": int, "bytes": bytes, "bool": bool}
NONE = b""  # a class without arguments
MAX_BYTES = 64 * 1024  # of all arguments: they name the containers, and travel with every call
_NO_DEFAULT = ("no default",)


def declared(raw: type) -> dict[str, tuple[str, Any]]:
    """The parameters of a class, inherited ones too: name to type name and default.

    Raises:
        InvalidError: one without an annotation, or of a type that parameters cannot have.
    """
    found: dict[str, tuple[str, Any]] = {}
    for base in reversed(raw.__mro__):
        annotations: Mapping[str, Any] = getattr(base, "__annotations__", {})
        for name, value in vars(base).items():
            if not isinstance(value, Parameter):
                continue
            where = f"{raw.__qualname__}.{name}"
            if name not in annotations:
                raise InvalidError(f"{where} has no annotation: write `{name}: str = farcall.parameter()`")
            if not value.init:
                continue
            annotation = annotations[name]
            type_name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", repr(annotation))
            if type_name not in TYPES:
                raise InvalidError(f"{where} is annotated {type_name}; parameters are str, int, bytes or bool")
            if value.default is not REQUIRED:
                _check_parameter(where, type_name, value.default)
            found[name] = (type_name, value.default)
    # An optional parameter is one whose default travels with handles, which the marker for "none" cannot.
    return {name: (kind, _NO_DEFAULT if default is REQUIRED else default) for name, (kind, default) in found.items()}


def _check_parameter(where: str, type_name: str, value: Any) -> None:
    if type(value) is not TYPES[type_name]:
        raise InvalidError(f"{where} is a {type_name}; {value!r} is a {type(value).__name__}")


def values(
    name: str, parameters: dict[str, tuple[str, Any]], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The value of every parameter, defaults included, from the arguments of a call to the class `name`."""
    if args:
        raise InvalidError(f"{name}() takes its parameters by keyword: {', '.join(f'{key}=...' for key in parameters)}")
    unknown = [key for key in kwargs if key not in parameters]
    if unknown:
        raise InvalidError(f"{name} has no parameter {', '.join(unknown)}; it has {', '.join(parameters)}")
    values: dict[str, Any] = {}
    for key in sorted(parameters):
        type_name, default = parameters[key]
        value = kwargs.get(key, default)
        if value == _NO_DEFAULT:
            raise InvalidError(f"{name}() needs the parameter {key}")
        _check_parameter(f"{name}: the parameter {key}", type_name, value)
        values[key] = value
    return values


def check_signature(name: str, raw: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises `InvalidError` where a class that has its own `__init__` would refuse the arguments."""
    import inspect

    try:
        inspect.signature(raw).bind(*args, **kwargs)
    except TypeError as error:
        raise InvalidError(f"{name}(): {error}") from None
    except ValueError:
        return  # no signature to check against: the container will say


def dumps(name: str, value: Any) -> bytes:
    """The same bytes for equal values: they are the key of a pool of containers. Without the pickler's memo it does not
    matter which equal strings are one object; what refers to itself needs the memo.

    Raises SerializationError, or InvalidError for more than `MAX_BYTES`.
    """
    encoded = _pickled(name, value)
    if len(encoded) > MAX_BYTES:
        raise InvalidError(
            f"the arguments of {name}() have {len(encoded):,} bytes; the limit is {MAX_BYTES:,}, as they travel with "
            "every call. Give what is large to a method, or load it in a method under @farcall.enter()"
        )
    return encoded


def _pickled(name: str, value: Any) -> bytes:
    import io
    import pickle

    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 5)
    pickler.fast = _is_plain(value)
    try:
        pickler.dump(value)
        return buffer.getvalue()
    except Exception:
        from farcall.sdk.pickle_by_value import ByValuePickler

        buffer = io.BytesIO()
        try:
            ByValuePickler(buffer, frozenset()).dump(value)
        except Exception as error:
            raise SerializationError(f"the arguments of {name}() cannot be sent: {error}") from error
        return buffer.getvalue()


def _is_plain(value: Any, depth: int = 0) -> bool:
    if depth > 20:
        return False
    if isinstance(value, (tuple, list)):
        return all(_is_plain(part, depth + 1) for part in cast("Sequence[Any]", value))
    if isinstance(value, dict):
        return all(
            _is_plain(key, depth + 1) and _is_plain(part, depth + 1)
            for key, part in cast("dict[Any, Any]", value).items()
        )
    return value is None or type(value) in (str, int, float, bool, bytes, complex)


def loads(name: str, params: bytes) -> Any:
    """A dict of parameters, or (args, kwargs)."""
    if params == NONE:
        return (), {}
    import pickle

    try:
        return pickle.loads(params)
    except Exception as error:
        raise DeserializationError(f"the arguments of {name}() cannot be rebuilt here: {error}") from error
