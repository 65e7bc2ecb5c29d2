"""How farcall lives in an interpreter where it is not installed, without leaving a trace in the user's imports.

A *runner directory* (made by `farcall.interpreters.private`) holds for one kind of interpreter

    farcall/  msgspec/  cloudpickle/      ours, never on sys.path
    path/farcall/__init__.py              the one thing that goes on sys.path: only `farcall` can be found there

`import msgspec` in user code must find the user's own msgspec, or none. So the farcall of a runner directory says
`from farcall._private import msgspec` where its source says `import msgspec` (the copy is rewritten, as vendoring tools
do), and this module holds ours, loaded under its own name and taken out of `sys.modules` again. cloudpickle needs no
such care: see `farcall._cloudpickle`.

Only the standard library, and of it only what every interpreter has loaded at its start.
"""

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import msgspec as msgspec

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_CHILDREN_PATH = os.path.join(_ROOT, "path")
_HOME_VARIABLE = "_FARCALL_HOME"  # from one process of ours to the next; no user code sees it
_home = sys.executable, _ROOT


def active() -> bool:
    """Whether this farcall runs from a runner directory, not from an installation."""
    return os.path.isdir(os.path.join(_CHILDREN_PATH, "farcall"))


def install() -> None:
    """Settle into this interpreter, before any user code runs and while there is one thread.

    Loads our msgspec out of sight. Puts on `sys.path`, last, a directory in which only `farcall` can be found: this
    process has farcall loaded already; the children that multiprocessing spawns inherit `sys.path` and need it there.
    """
    global _home
    if _HOME_VARIABLE in os.environ:
        executable, _, root = os.environ.pop(_HOME_VARIABLE).rpartition(os.pathsep)
        _home = executable, root
    if active() and _CHILDREN_PATH not in sys.path:
        sys.path.append(_CHILDREN_PATH)
    if "msgspec" not in globals():
        globals()["msgspec"] = _load_msgspec()


def home() -> tuple[str, str]:
    """Where farcall is installed: the Python to start a server with, and the folder in which that finds farcall."""
    return _home


def home_environment() -> dict[str, str]:
    """The variables that tell a farcall started from a runner directory where its home is."""
    return {_HOME_VARIABLE: os.pathsep.join(_home)}


def package_directory(name: str) -> str:
    """Where the package `name` of farcall's dependencies lies: in the runner directory, else as installed."""
    if active():
        return os.path.join(_ROOT, name)
    from importlib.util import find_spec

    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"farcall needs {name}, which is not installed beside it", name=name)
    return next(iter(spec.submodule_search_locations))


def _load_msgspec() -> ModuleType:
    if not active():
        import msgspec

        return msgspec
    # Its C extension imports "msgspec._utils" by that name, so that it cannot be loaded under another one: ours takes
    # the place of the user's for as long as its import lasts. The import of typing_extensions is refused meanwhile:
    # msgspec does without, and it would be the user's, 7 ms and possibly not yet importable.
    theirs = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "msgspec"}
    typing_extensions = sys.modules.get("typing_extensions")
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]
    sys.path.insert(0, _ROOT)
    try:
        import msgspec
    finally:
        sys.path.remove(_ROOT)
        del sys.modules["typing_extensions"]
        if typing_extensions is not None:
            sys.modules["typing_extensions"] = typing_extensions
        for name in [name for name in sys.modules if name.partition(".")[0] == "msgspec"]:
            del sys.modules[name]
        sys.modules.update(theirs)
    return msgspec


def __getattr__(name: str) -> Any:
    if name != "msgspec":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = globals()["msgspec"] = _load_msgspec()
    return module
