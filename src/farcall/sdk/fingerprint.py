"""What stands for a Python function's behaviour: its code, the code and values it refers to, its arguments.

It is the same in another folder, in another process and on another machine, as far as what is looked at is: source
text, and values by their pickle. What a function only reaches at run time (files, the environment, `getattr` by a
computed name) is not seen.
"""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any, cast

from farcall.sdk import source


def fingerprint(raw: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """A hexadecimal digest."""
    walk = _Walk()
    walk.value(raw)
    walk.value(list(args))
    walk.value(dict(kwargs))
    return walk.digest()


class _Walk:
    """A walk over what a function refers to, each thing once."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._seen: dict[int, tuple[int, Any]] = {}  # by identity; the object is kept so that its id stays its own

    def digest(self) -> str:
        return self._hash.hexdigest()

    def _note(self, kind: str, data: str | bytes = b"") -> None:
        raw = data.encode(errors="surrogatepass") if isinstance(data, str) else data
        self._hash.update(f"{kind}:{len(raw)}:".encode() + raw)

    def value(self, value: Any) -> None:
        """Any object."""
        if isinstance(value, (str, bytes, int, float, complex, bool, type(None))):
            self._note(type(value).__name__, repr(value))
            return
        known = self._seen.get(id(value))
        if known is not None:
            self._note("again", str(known[0]))
            return
        self._seen[id(value)] = (len(self._seen), value)
        if isinstance(value, ModuleType):
            self._module(value)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, (list, tuple)):
            items = cast("Sequence[Any]", value)
            self._note(type(items).__name__, str(len(items)))
            for item in items:
                self.value(item)
        elif isinstance(value, dict):
            entries = cast("dict[Any, Any]", value)
            self._note("dict", str(len(entries)))
            for key, item in entries.items():
                self.value(key)
                self.value(item)
        elif isinstance(value, (set, frozenset)):
            self._unordered(cast("Iterable[Any]", value))
        elif type(value).__module__.partition(".")[0] == "farcall":
            self._ours(value)
        else:
            self._pickled(value)

    def _unordered(self, items: Iterable[Any]) -> None:
        """The order of a set differs from process to process."""
        digests: list[str] = []
        for item in items:
            walk = _Walk()
            walk.value(item)
            digests.append(walk.digest())
        self._note("set", " ".join(sorted(digests)))

    def _ours(self, value: Any) -> None:
        """An app, an image: what counts of a decorated function or class is its code, of all else that it is there."""
        raw = getattr(value, "raw", None)
        self._note("farcall", type(value).__name__)
        if raw is not None:
            self.value(raw)

    def _pickled(self, value: Any) -> None:
        import pickle

        if not _is_installed(type(value).__module__):
            self.value(type(value))
        try:
            self._note("pickle", pickle.dumps(value, protocol=5))
        except Exception:  # a lock, a connection: its kind is all that can be told
            self._note("object", f"{type(value).__module__}.{type(value).__qualname__}")

    def _module(self, module: ModuleType) -> None:
        """One that is installed counts by its name, the user's own by the text of its file."""
        self._note("module", module.__name__)
        file = getattr(module, "__file__", None)
        if file is not None and not _is_installed(module.__name__):
            try:
                with open(file, "rb") as text:
                    self._note("text", text.read())
            except OSError:
                pass

    def _class(self, cls: type) -> None:
        if _is_installed(cls.__module__):
            self._note("class", f"{cls.__module__}.{cls.__qualname__}")
            return
        self._note("class", cls.__qualname__)
        for base in cls.__mro__[1:]:
            self.value(base)
        try:
            self._note("source", textwrap.dedent(inspect.getsource(cls)))
        except (OSError, TypeError):
            pass  # made at a prompt: its methods are looked at one by one
        for value in vars(cls).values():
            function = getattr(value, "__func__", value)
            if isinstance(function, FunctionType):
                self.value(function)

    def _function(self, function: FunctionType) -> None:
        self._note("function", function.__qualname__)
        if _is_installed(function.__module__):
            self._note("installed", function.__module__)
            return
        try:
            self._note("source", textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError):
            self._code(function.__code__)
        self.value(function.__defaults__)
        self.value(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.value(cell.cell_contents)
            except ValueError:
                self._note("empty")
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                self._note("global", name)
                self.value(function.__globals__[name])

    def _code(self, code: CodeType) -> None:
        self._note("code", code.co_code)
        self._note("names", " ".join((*code.co_names, *code.co_varnames)))
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._code(constant)
            else:
                self.value(constant)


def _names(code: CodeType) -> set[str]:
    """The names that a code object and those in it may look up among the globals."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant)
    return found


def _is_installed(module: str) -> bool:
    """Whether a module is the interpreter's or installed, so that its version stands for its code."""
    import sys

    found = sys.modules.get(module)
    if module == "builtins" or (found is not None and getattr(found, "__file__", None) is None):
        return module != "__main__"
    file = getattr(found, "__file__", None)
    return file is not None and source.is_installed(file)
