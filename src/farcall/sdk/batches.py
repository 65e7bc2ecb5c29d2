"""Batched functions: from the arguments of single calls to lists, and from a list of results back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from farcall.errors import InvalidError


def parameter_names(raw: Callable[..., Any], name: str, *, is_method: bool) -> tuple[str, ...]:
    """The parameters of a batched function, each of which is given a list; without `self` for a method.

    Raises:
        InvalidError: parameters that cannot be lists.
    """
    import inspect

    found = list(inspect.signature(raw).parameters.values())[1 if is_method else 0 :]
    for parameter in found:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise InvalidError(
                f"{name}: a @farcall.batched function cannot take {parameter}: each of its parameters is a list, so "
                "all have names"
            )
        if parameter.kind is parameter.KEYWORD_ONLY:
            raise InvalidError(
                f"{name}: the parameter {parameter.name} of a @farcall.batched function is keyword-only: remove the *"
            )
        if parameter.default is not parameter.empty:
            raise InvalidError(f"{name}: a @farcall.batched function cannot have default arguments")
    if not found:
        raise InvalidError(f"{name}: a @farcall.batched function needs a parameter, which is given the list of items")
    return tuple(parameter.name for parameter in found)


def row(name: str, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
    """The arguments of one call in the order of the parameters. Raises TypeError where they do not fit, as a call
    does."""
    if not kwargs and len(args) == len(names):
        return args
    if len(args) > len(names):
        raise TypeError(f"{name}() takes {len(names)} arguments for each item but {len(args)} were given")
    given = dict(zip(names, args, strict=False))
    for key, value in kwargs.items():
        if key not in names:
            raise TypeError(f"{name}() got an unexpected keyword argument {key!r}")
        if key in given:
            raise TypeError(f"{name}() got multiple values for argument {key!r}")
        given[key] = value
    missing = [key for key in names if key not in given]
    if missing:
        raise TypeError(f"{name}() misses the argument {', '.join(missing)}")
    return [given[key] for key in names]


def columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The lists that the function is called with, one for each parameter."""
    return [list(column) for column in zip(*rows, strict=True)]


def results(name: str, value: Any, count: int) -> list[Any]:
    """The results of `count` calls.

    Raises:
        InvalidError: `value` is no list of that length.
    """
    if not isinstance(value, list):
        raise InvalidError(
            f"{name} is @farcall.batched and returned a {type(value).__name__}; it must return a list with one result "
            f"for each of the {count} items it was given"
        )
    found = cast("list[Any]", value)
    if len(found) != count:
        raise InvalidError(
            f"{name} is @farcall.batched, was given {count} items and returned a list of {len(found)}; it must return "
            "one result for each item, in their order"
        )
    return found
