"""Which interpreter a script runs with."""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from farcall.errors import InvalidError
from farcall.interpreters.probe import MINIMUM, details
from farcall.settings.files import project_table

_PYTHON = os.path.join(*("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python"))  # in a venv
_VERSION = re.compile(r"(?:python|cpython-?)?(3\.\d+)(\.\d+)?$")


class Choice(NamedTuple):
    """The interpreter a script runs with, and why: "--python", "active venv", ".venv", "farcall's own"."""

    executable: str
    reason: str


def choose(
    explicit: str | None,
    cwd: Path,
    environ: Mapping[str, str],
    *,
    origin: str = "--python",
    last: str | None = None,
) -> Choice:
    """The project's interpreter: `explicit`, else the active venv, else `.venv` upward from `cwd`, the script's folder,
    else `[tool.farcall] python` in the nearest pyproject.toml, else `last` (the profile's), else the one that runs
    farcall.

    `explicit` is a path, a command, a venv's folder, or a version such as "3.12"; `origin` names where it came from.
    Raises `InvalidError` where what was named is missing, does not work or is older than Python 3.11; it never goes on
    to the next candidate, because a script that runs with another Python than its user thinks is the worse surprise.
    """
    if explicit:
        return _checked(_named(explicit, cwd, environ, origin), origin)
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = environ.get(variable)
        if prefix:
            executable = Path(prefix) / _PYTHON
            if not executable.exists():
                raise InvalidError(
                    f"the active environment {prefix} ({variable}) has no {_PYTHON}. "
                    f"Make it again (`python3 -m venv {prefix}`), or leave it (`unset {variable}`)."
                )
            return _checked(str(executable), "active venv" if variable == "VIRTUAL_ENV" else "active conda environment")
    for folder in (cwd, *cwd.parents):
        executable = folder / ".venv" / _PYTHON
        if executable.is_symlink() or executable.exists():
            # A .venv that somebody else put into a shared parent such as /tmp would run his code as this user.
            if sys.platform != "win32" and os.lstat(executable).st_uid not in (os.getuid(), 0):
                continue
            if not executable.exists():
                raise InvalidError(
                    f"{executable} points to {os.readlink(executable)}, which does not exist. "
                    f"Make the environment again: `rm -r {folder / '.venv'} && python3 -m venv {folder / '.venv'}`."
                )
            return _checked(str(executable), ".venv")
    project = _project_python(cwd)
    if project is not None:
        value, folder = project
        return _checked(_named(value, folder, environ, "[tool.farcall] python"), "pyproject.toml")
    if last:
        return _checked(_named(last, cwd, environ, "the profile"), "profile")
    return Choice(sys.executable, "farcall's own")


def is_own(executable: str) -> bool:
    """Whether `executable` is the interpreter, and the environment, this process runs in."""
    return environment_of(executable) == environment_of(sys.executable)


def environment_of(executable: str) -> str:
    """What two executables of the same Python and packages share: the venv's folder, else the real executable."""
    # A venv's python is a link to its base: the folder tells them apart, the link's target does not.
    folder = os.path.dirname(os.path.dirname(os.path.abspath(executable)))
    return folder if os.path.exists(os.path.join(folder, "pyvenv.cfg")) else os.path.realpath(executable)


def _checked(executable: str, reason: str) -> Choice:
    return Choice(executable if is_own(executable) else details(executable).executable, reason)


def _named(value: str, folder: Path, environ: Mapping[str, str], origin: str) -> str:
    """The executable that `value` (a path, command, venv folder or version) means."""
    version = _VERSION.match(value)
    if version and not (folder / value).exists():
        if int(version[1].partition(".")[2]) < MINIMUM[1]:
            raise InvalidError(
                f"Python {value} is too old ({origin}): farcall needs {MINIMUM[0]}.{MINIMUM[1]} or newer"
            )
        for candidate in installed(version[1], environ):
            found = _works(candidate)
            if found and (found == version[1] + version[2] if version[2] else found.startswith(version[1] + ".")):
                return candidate
        raise InvalidError(
            f"no Python {value} was found on PATH, in pyenv or in uv ({origin}). "
            f"Install it with `uv python install {value}`, or name an interpreter by its path."
        )
    path = folder / Path(value).expanduser()
    if path.is_dir():
        path = path / _PYTHON
    if path.exists():
        return str(path) if path.is_absolute() else os.path.abspath(path)
    if os.sep not in value:
        from shutil import which

        found = which(value, path=environ.get("PATH"))
        if found:
            return found
    raise InvalidError(
        f"there is no Python at {value} ({origin}). "
        "Name an interpreter, the folder of a virtual environment, or a version such as 3.12."
    )


def installed(version: str, environ: Mapping[str, str]) -> Iterator[str]:
    """Executables that may be Python `version` ("3.12"), the likeliest first."""
    for folder in environ.get("PATH", "").split(os.pathsep):
        candidate = os.path.join(folder, f"python{version}")
        # pyenv's shims are scripts that work only for the versions its configuration names.
        if folder and not folder.endswith("/shims") and os.access(candidate, os.X_OK):
            yield candidate
    home = Path(environ.get("HOME") or os.path.expanduser("~"))
    pyenv = Path(environ.get("PYENV_ROOT") or home / ".pyenv") / "versions"
    data = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    uv = Path(environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    for root, pattern in ((pyenv, f"{version}*"), (uv, f"cpython-{version}[.-]*")):
        found = [path for path in root.glob(pattern) if (path / "bin" / f"python{version}").exists()]
        for path in sorted(
            found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)], reverse=True
        ):
            yield str(path / "bin" / f"python{version}")


def _works(executable: str) -> str | None:
    try:
        return details(executable).version
    except InvalidError:
        return None


def _project_python(folder: Path) -> tuple[str, Path] | None:
    """`[tool.farcall] python` of the nearest pyproject.toml, and the folder of that file."""
    found = project_table(folder)
    value = found[0].get("python") if found else None
    if found is None or value is None:
        return None
    if not isinstance(value, str):
        raise InvalidError(f"[tool.farcall] python in {found[1]} must be a string (a path or a version), not {value!r}")
    return value, found[1].parent
