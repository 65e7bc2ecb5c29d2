"""Finding the user's code: which module a function is in, and which files the container must see to import it.

- A script (`python script.py`, `farcall run script.py`) brings its own file and nothing else.
- A module of a package brings the top-level package's directory.
- What is installed brings nothing: the container sees the interpreter's own directories.
- What is defined in a notebook, an interactive session or `python -c` is sent by value.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from farcall.errors import FarcallWarning, InvalidError, SerializationError
from farcall.sdk.image_parts import LocalFiles
from farcall.spec.function import Source

if TYPE_CHECKING:
    from farcall.sdk.image import Image

PICKLE_WARNING = 256 * 1024  # bytes of a function sent by value
PICKLE_LIMIT = 16 * 1024 * 1024

_scripts: dict[str, str] = {}  # module name to file, of scripts that the command line imported


class Found(NamedTuple):
    """Where the code is, and what to mount for it."""

    source: Source
    files: tuple[LocalFiles, ...] = ()


def register_script(module: str, path: str) -> None:
    """Called by the command line: the program at `path` is about to be imported under the name `module`."""
    _scripts[module] = os.path.abspath(path)


def is_interactive(module: str) -> bool:
    """Whether `module` has no file that a container could import: a notebook, a REPL, `python -c`, standard input."""
    if module != "__main__":
        return module not in sys.modules and not _scripts.get(module)
    names = vars(sys.modules["__main__"])
    path = names.get("__file__")
    return path is None or "get_ipython" in names or not os.path.isfile(path)


def module_name(path: str) -> str:
    """The name under which a script is imported: its stem, unless another module has that name already, or could not
    have it: one with a dot would be a module of a package."""
    stem = os.path.splitext(os.path.basename(path))[0]
    if "." in stem:
        return f"{stem.replace('.', '_')}__script"
    taken = sys.modules.get(stem)
    if stem in sys.stdlib_module_names or (
        taken is not None and taken is not sys.modules["__main__"] and getattr(taken, "__file__", None) != path
    ):
        return f"{stem}__script"
    return stem


def alias_main() -> None:
    """Makes `__main__` importable under the name its container gives it, so that classes pickled there as
    `stem.Class` are the same type here."""
    main = sys.modules["__main__"]
    if is_interactive("__main__"):
        return
    name = _main_name(main)
    if name != "__main__":
        sys.modules.setdefault(name, main)


def _main_name(main: ModuleType) -> str:
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name
    return module_name(os.path.abspath(str(main.__file__)))


def find(raw: Callable[..., Any], *, serialized: bool, include: bool) -> Found:
    """Where a container finds `raw`, a function or class. With `include` False nothing is mounted for it."""
    module = raw.__module__
    if serialized or is_interactive(module):
        return Found(Source(module=module, qualname=raw.__qualname__, pickled=pickled(raw)))
    script = _scripts.get(module)
    name = module
    if module == "__main__":
        main = sys.modules["__main__"]
        name = _main_name(main)
        if getattr(main, "__spec__", None) is None:
            script = os.path.abspath(str(main.__file__))
    if script is not None:
        if not include:
            return Found(Source(module=name, qualname=raw.__qualname__, is_main=module == "__main__"))
        return Found(Source(module=name, qualname=raw.__qualname__, script=script), (LocalFiles(script, script),))
    paths, files = files_of(name) if include else ((), ())
    return Found(Source(module=name, qualname=raw.__qualname__, paths=paths, is_main=module == "__main__"), files)


def pickled(raw: Callable[..., Any]) -> bytes:
    """The function or class by value, with what else it uses of its module."""
    import io

    from farcall.sdk.pickle_by_value import ByValuePickler

    buffer = io.BytesIO()
    try:
        ByValuePickler(buffer, frozenset({raw.__module__})).dump(raw)
    except Exception as error:
        raise SerializationError(
            f"{raw.__qualname__} cannot be sent by value: {error}. Make what it refers to inside the function, or pass "
            "it as an argument"
        ) from error
    size = buffer.tell()
    if size > PICKLE_LIMIT:
        raise InvalidError(
            f"{raw.__qualname__} is {size / 2**20:.1f} MiB by value, above the limit of 16 MiB: it refers to something "
            "large; pass that as an argument"
        )
    if size > PICKLE_WARNING:
        warnings.warn(
            f"{raw.__qualname__} is {size / 2**10:.0f} KiB by value: each of its containers loads that; pass what is "
            "large as an argument",
            FarcallWarning,
            stacklevel=2,
        )
    return buffer.getvalue()


def files_of(name: str) -> tuple[tuple[str, ...], tuple[LocalFiles, ...]]:
    """The folders for `sys.path`, and the files and folders, that make module `name` importable in a container.

    Nothing for what is installed or built in. Raises `InvalidError` where there is no such module.
    """
    top = name.partition(".")[0]
    module = sys.modules.get(top)
    origin, locations = _locations(top) if module is None else _locations_of(module)
    if origin is None and not locations:
        return (), ()
    roots = [os.path.abspath(location) for location in locations] or [os.path.abspath(str(origin))]
    outside = [root for root in roots if not is_installed(root)]
    folders = tuple(dict.fromkeys(os.path.dirname(root) for root in outside))
    return folders, tuple(LocalFiles(root, root, is_source=True) for root in outside)


def local_of(image: Image) -> tuple[tuple[str, ...], tuple[LocalFiles, ...]]:
    """Folders for `sys.path`, and what is mounted, of the local files and modules of an image."""
    folders: list[str] = []
    files: list[LocalFiles] = []
    for local in image.local:
        if isinstance(local, LocalFiles):
            files.append(local)
            continue
        for module in local.names:
            module_folders, found = files_of(module)
            folders += module_folders
            files += [file._replace(ignore=local.ignore) for file in found]
    # What is put into /root, mounted or by a build, is importable there.
    if not image.is_host or any(f"{file.target}/".startswith("/root/") for file in files):
        folders.append("/root")
    return tuple(dict.fromkeys(folders)), tuple(dict.fromkeys(files))


def _locations_of(module: ModuleType) -> tuple[str | None, list[str]]:
    paths = getattr(module, "__path__", None)
    if paths is None and module is sys.modules["__main__"]:  # `python -m module`, under its own name
        return getattr(module, "__file__", None), []
    return getattr(module, "__file__", None), [path for path in list(paths or ()) if os.path.isdir(path)]


def _locations(name: str) -> tuple[str | None, list[str]]:
    import importlib.util

    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise InvalidError(f"there is no module {name!r} here to add to a container; is its folder on sys.path?")
    origin = spec.origin if spec.has_location else None
    return origin, list(spec.submodule_search_locations or ())


def is_installed(path: str) -> bool:
    """Whether `path` is in one of the interpreter's own directories, which every container sees."""
    if {"site-packages", "dist-packages"} & set(path.split(os.sep)):
        return True
    return any(path.startswith(root + os.sep) for root in _library_roots())


def _library_roots() -> Iterable[str]:
    return (os.path.dirname(os.path.abspath(os.__file__)),)


def hint_for_missing_module(name: str) -> str | None:
    """For a `ModuleNotFoundError` from a container: the line that would fix it, None where nothing is known."""
    import importlib.util

    top = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if top in sys.stdlib_module_names:
        return None
    if spec is None:
        return (
            f"there is no {top!r} for {sys.executable} either, which functions without an image use: "
            f'`{sys.executable} -m pip install {top}` installs it, or .pip_install("{top}") on the image of the '
            "function, where its package has the same name"
        )
    if not (spec.has_location or spec.submodule_search_locations):
        return None
    places = [spec.origin] if spec.origin is not None else list(spec.submodule_search_locations or ())
    if any(is_installed(os.path.abspath(place)) for place in places):
        from importlib.metadata import packages_distributions

        package = packages_distributions().get(top, [top])[0]
        return f'{top!r} is installed here but not in the image of the function: add .pip_install("{package}") to it'
    return (
        f'the module {top!r} is here ({places[0]}) but was not sent: add .add_local_python_source("{top}") to the '
        "image of the function or the app, which is farcall.Image.host() where there is none"
    )
