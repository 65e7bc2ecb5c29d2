"""The user's program: found, loaded into this process, and what in it can be run."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from farcall import _private
from farcall.cli.usage import UsageError, nearest
from farcall.errors import InvalidError

if TYPE_CHECKING:
    from farcall.sdk.app import App


class Reference(NamedTuple):
    """What `farcall run` was told to run: a file or a module, and a name in it, "" for none."""

    target: str
    name: str
    is_module: bool

    @property
    def folder(self) -> Path:
        """Where the search for the project begins: the script's folder, the current one for a module."""
        return Path.cwd() if self.is_module else Path(self.target).absolute().parent

    def __str__(self) -> str:
        return f"{'-m ' if self.is_module else ''}{self.target}"


class _Loader(SourceFileLoader):
    """Compiles a program each time, as `python FILE` does: bytecode in a file would count as current for an edit that
    came within the same second and left the size as it was."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def reference(text: str, *, is_module: bool = False) -> Reference:
    """Take `FILE::NAME` (or `MODULE::NAME`) apart. Raises `UsageError` where there is no such file."""
    target, _, name = text.partition("::")
    if not is_module:
        check_file(target)
    return Reference(target, name, is_module)


def check_file(target: str) -> None:
    """Raise `UsageError`, with the nearest name there is, unless `target` is a file."""
    path = Path(target)
    try:
        if path.is_file():
            return
    except OSError as error:
        raise UsageError(f"cannot read {target}: {error.strerror}") from None
    if path.is_dir():
        raise UsageError(f"{target} is a folder; name a file in it, or a package with -m")
    folder = path.parent
    names = [str(entry.relative_to(folder)) for entry in folder.glob("*.py")] if folder.is_dir() else []
    if target.replace(".", "").isidentifier() and not target.endswith(".py") and (folder / f"{target}.py").exists():
        raise UsageError(f"there is no file {target}; did you mean '{target}.py', or -m {target}?")
    hint = nearest(path.name, names) if 0 < len(names) <= 50 else ""
    raise UsageError(f"there is no file {target}{hint}")


def load(where: Reference, arguments: list[str]) -> ModuleType:
    """Import the program as `python FILE` would find it: its folder first on `sys.path`, `sys.argv` its own.

    Raises whatever the program raises.
    """
    from farcall.sdk import source

    if where.is_module:
        sys.argv = [where.target, *arguments]
        begin_path(os.getcwd())
        try:
            return importlib.import_module(where.target)
        except ModuleNotFoundError as error:
            top = where.target.partition(".")[0]
            if error.name is not None and (where.target + ".").startswith(error.name + "."):
                raise UsageError(
                    f"there is no module {where.target} (looked for {top} in {os.getcwd()} and in {sys.prefix})"
                ) from None
            raise
    path = os.path.abspath(where.target)
    sys.argv = [where.target, *arguments]
    begin_path(os.path.dirname(path))
    name = source.module_name(path)
    source.register_script(name, path)
    spec = spec_from_file_location(name, path, loader=_Loader(name, path))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def relative_import_hint(where: Reference) -> str:
    """How to run the file as a module of its package, in which its relative imports work."""
    path = Path(where.target).absolute()
    root, names = path.parent, [path.stem]
    here_below = path.is_relative_to(Path.cwd()) and root != Path.cwd()
    while root != Path.cwd() if here_below else len(names) == 1 or (root / "__init__.py").exists():
        names.insert(0, root.name)
        root = root.parent
    here = "" if root == Path.cwd() else f"cd {root} && "
    name = f"::{where.name}" if where.name else ""
    return f"farcall: relative imports work in a module of a package: {here}farcall run -m {'.'.join(names)}{name}"


def begin_path(folder: str) -> None:
    """Put `folder` first on `sys.path`, in place of what farcall's own start has put there."""
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    own_start = not _private.active() and not sys.flags.safe_path
    if own_start and sys.path and os.path.abspath(sys.path[0]) != ours:
        del sys.path[0]
    sys.path.insert(0, folder)


class Runnable(NamedTuple):
    """Something a program offers to be run. `raw` is the function whose signature gives the arguments."""

    app: "App"
    kind: Literal["entrypoint", "function", "method"]
    name: str
    object: Any
    raw: Callable[..., Any]


def runnables(module: ModuleType) -> list[Runnable]:
    """What the apps among the module's globals offer: entrypoints, then functions and methods of classes."""
    from farcall.sdk.app import App

    apps = {id(value): value for value in vars(module).values() if isinstance(value, App)}
    if not apps:
        raise InvalidError(
            f"{getattr(module, '__file__', module.__name__)} has no app: make one with `app = farcall.App()` at the "
            "top level, and decorate functions with `@app.function()`"
        )
    found: list[Runnable] = []
    for app in apps.values():
        for name, entrypoint in app.registered_entrypoints.items():
            found.append(Runnable(app, "entrypoint", name, entrypoint, entrypoint.raw))
    for app in apps.values():
        for name, function in app.registered_functions.items():
            if function.raw is not None and not function.info_of_code.is_web:
                found.append(Runnable(app, "function", name, function, function.raw))
        for class_name, cls in app.registered_classes.items():
            for name in cls.shape.methods:
                raw = _method(cls.raw, name)
                if raw is not None:
                    found.append(Runnable(app, "method", f"{class_name}.{name}", cls, raw))
    return found


def has_run(found: list[Runnable]) -> bool:
    """Whether the program has run its app at its top level, while it was loaded, and offers no entrypoint besides."""
    return any(one.app.app_id is not None for one in found) and not any(one.kind == "entrypoint" for one in found)


def select(found: list[Runnable], where: Reference) -> Runnable:
    """The one that is meant: the one of that name; without a name the only entrypoint, else the only function.

    Raises `UsageError` that lists what there is.
    """
    if where.name:
        for one in found:
            if one.name == where.name:
                return one
        raise UsageError(f"{where} has no {where.name!r}{nearest(where.name, (one.name for one in found))}")
    entrypoints = [one for one in found if one.kind == "entrypoint"]
    candidates = entrypoints or found
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise UsageError(f"{where} has nothing to run: no @app.local_entrypoint() and no @app.function()")
    what = "entrypoints" if entrypoints else "functions and no entrypoint"
    raise UsageError(f"{where} has several {what}; name one:\n{listing(candidates, where)}")


def listing(found: list[Runnable], where: Reference) -> str:
    """What can be run, a line each, with arguments and the first line of what it says of itself."""
    from farcall.cli.arguments import synopsis

    lines: list[str] = []
    for one in found:
        about = (inspect.getdoc(one.raw) or "").partition("\n")[0]
        line = f"  farcall run {where}::{one.name} {synopsis(one.raw, method=one.kind == 'method')}".rstrip()
        lines.append(line + (f"\n      {about}" if about else ""))
    return "\n".join(lines)


def _method(cls: type | None, name: str) -> Callable[..., Any] | None:
    """The plain function behind a method of a decorated class."""
    member = inspect.getattr_static(cls, name, None)
    raw = getattr(member, "raw", member)
    return raw if inspect.isfunction(raw) else None
