"""Names of the reference API whose features this version does not have yet.

They can be imported, constructed and chained at module level, so that a program that declares them still loads; the
error comes, naming the feature, when it would need the feature to work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Self

from farcall.errors import UnimplementedError
from farcall.version import __version__


def refuse(feature: str) -> NoReturn:
    """Raises the error for a use of `feature`."""
    raise UnimplementedError(f"{feature} is not available in farcall {__version__} yet")


class Later:
    """A bound method of a feature that is not there yet: calling it, or its `.aio`, is `UnimplementedError`."""

    def __init__(self, feature: str) -> None:
        self.feature = feature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        refuse(self.feature)

    def aio(self, *args: Any, **kwargs: Any) -> Any:
        """The awaited form, not there yet either."""
        refuse(self.feature)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Later(f"{self.feature}.{name}")

    def __repr__(self) -> str:
        return f"<{self.feature}: not available yet>"


class later:  # noqa: N801 - used as a decorator, like property
    """Decorator of a method or property whose feature is not there yet; the function carries name and docstring."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__doc__ = function.__doc__
        self._name = function.__name__
        self._owner = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner = owner.__name__

    def __get__(self, instance: Any, owner: Any) -> Any:
        return Later(f"{self._owner}.{self._name}")


class _PlaceholderType(type):
    """Makes every public name of a Placeholder class, such as `Sandbox.create`, an `UnimplementedError` when called."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        return Later(f"{cls.__name__}.{name}")


class Placeholder(metaclass=_PlaceholderType):
    """Base of the classes whose features are not there yet.

    The lazy constructors, such as `from_name`, give a handle that remembers how it was made; every other public name is
    `UnimplementedError` when it is called.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        shown = [repr(argument) for argument in args] + [f"{name}={value!r}" for name, value in kwargs.items()]
        self._made_by = f"{type(self).__name__}({', '.join(shown)})"

    @classmethod
    def from_name(cls, *args: Any, **kwargs: Any) -> Self:
        """A handle to the object of that name; nothing is looked up before it is used."""
        return cls._made("from_name", *args)

    @classmethod
    def from_id(cls, *args: Any, **kwargs: Any) -> Self:
        """A handle to the object with that id; nothing is looked up before it is used."""
        return cls._made("from_id", *args)

    @classmethod
    def from_context(cls, *args: Any, **kwargs: Any) -> Self:
        """A handle to the object that this code belongs to; nothing is looked up before it is used."""
        return cls._made("from_context", *args)

    @classmethod
    def _made(cls, constructor: str, *args: Any) -> Self:
        made = cls.__new__(cls)
        made._made_by = f"{cls.__name__}.{constructor}({', '.join(map(repr, args))})"
        return made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return Later(f"{type(self).__name__}.{name}")

    def _refuse(self, *args: Any) -> NoReturn:
        refuse(type(self).__name__)

    __getitem__ = __setitem__ = __delitem__ = __contains__ = __iter__ = __len__ = _refuse
    __enter__ = __exit__ = __aenter__ = __aexit__ = _refuse

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<farcall.{self._made_by}>"
