"""The inputs of maps, checked: iterables, rows of arguments, keywords."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from farcall.errors import InvalidError


def check_iterables(name: str, form: str, iterables: Sequence[Any]) -> None:
    if not iterables:
        raise InvalidError(
            f"{name}.{form} needs an iterable of inputs, one for each argument: write {name}.{form}([1, 2, 3])"
        )
    for iterable in iterables:
        if not any(hasattr(iterable, each) for each in ("__iter__", "__getitem__", "__aiter__")):
            raise InvalidError(
                f"{name}.{form}: {iterable!r} is not iterable; give one iterable for each argument, "
                f"or write {name}.remote(...) for a single input"
            )


def check_kwargs(name: str, form: str, kwargs: Any) -> None:
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):  # pyright: ignore[reportUnknownVariableType]
        raise InvalidError(
            f"{name}.{form}: kwargs={kwargs!r} is no dict of keyword arguments; write kwargs={{'name': value}}, "
            "which every input is given"
        )


def blocking(name: str, form: str, iterables: Sequence[Any]) -> Sequence[Iterable[Any]]:
    check_iterables(name, form, iterables)
    for iterable in iterables:
        if hasattr(iterable, "__aiter__") and not hasattr(iterable, "__iter__"):
            raise InvalidError(f"{name}.{form} cannot read an asynchronous iterable; write {name}.{form}.aio(...)")
    return iterables


def checked_rows(name: str, iterable: Any) -> Any:
    """The iterable of a starmap, whose items are checked: at once where it is a container, else as they come."""
    if isinstance(iterable, (list, tuple, set, frozenset, range, dict, str, bytes)):
        kinds: dict[Any, Any] = {type(item): item for item in cast("Iterable[Any]", iterable)}
        for item in kinds.values():
            _check_row(name, item)
        return iterable  # pyright: ignore[reportUnknownVariableType]
    if hasattr(iterable, "__aiter__"):
        return _checked_rows_async(name, iterable)
    return (_SizedRows if hasattr(iterable, "__len__") else _Rows)(name, iterable)


def _check_row(name: str, item: Any) -> None:
    if not hasattr(item, "__iter__") and not hasattr(item, "__getitem__"):
        raise InvalidError(
            f"{name}.starmap wants items that are sequences of arguments, such as (1, 2), and was given {item!r}; "
            f"write {name}.map(...) where each item is the one argument"
        )


class _Rows:
    def __init__(self, name: str, iterable: Any) -> None:
        self._name = name
        self._iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            _check_row(self._name, item)
            yield item


class _SizedRows(_Rows):
    def __len__(self) -> int:
        return len(self._iterable)


async def _checked_rows_async(name: str, iterable: AsyncIterable[Any]) -> AsyncGenerator[Any]:
    async for item in iterable:
        _check_row(name, item)
        yield item
