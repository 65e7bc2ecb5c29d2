"""Files that say which Python packages a project needs, read on the user's machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from farcall.errors import InvalidError

_REFERENCE = re.compile(r"(?:-r|--requirement|-c|--constraint)(?:\s+|=|(?=\S))(.+)")
_LOCAL = re.compile(r"(\.{1,2}(/|$)|/|~|file:)|.*\.(whl|tar\.gz|zip)$")
_URL = re.compile(r"(https?|git\+\w+)://")
_EDITABLE = re.compile(r"(-e|--editable)(\s|=)")


class Requirements(NamedTuple):
    """The contents of requirements and of constraints files, each without references to others; and the files."""

    requirements: tuple[str, ...]
    constraints: tuple[str, ...]
    files: tuple[str, ...]


def read(method: str, packages: Sequence[str], files: Sequence[str | Path]) -> Requirements:
    """Requirements files, and those that they name with -r and -c, all as text.

    Raises InvalidError for one that cannot be read, and where `packages` or lines of the files name files or folders of
    this machine.
    """
    for package in packages:
        _check(method, package, "")
    requirements: list[str] = []
    constraints: list[str] = []
    seen: list[str] = []
    for file in files:
        _read(method, Path(file).expanduser().absolute(), requirements, constraints, requirements, (), seen)
    return Requirements(tuple(requirements), tuple(constraints), tuple(seen))


def _check(method: str, requirement: str, where: str) -> None:
    target = requirement.partition(" @ ")[2].strip() or requirement
    if _EDITABLE.match(requirement) or (_LOCAL.match(target) and not _URL.match(target)):
        raise InvalidError(
            f"{method}: {where}{requirement!r} is on this machine, where a build does not see it. Add its folder with "
            'add_local_dir(..., "/x", copy=True) and install it with run_commands("pip install /x")'
        )


def _read(
    method: str,
    path: Path,
    requirements: list[str],
    constraints: list[str],
    into: list[str],
    above: tuple[Path, ...],
    seen: list[str],
) -> None:
    if path in above:
        raise InvalidError(f"{method}: {path} names itself, by way of {' and '.join(map(str, above))}")
    seen.append(str(path))
    kept: list[str] = []
    for number, line in _lines(method, path):
        if (found := _REFERENCE.fullmatch(line)) is not None:
            other = path.parent / found[1].strip().strip("\"'")
            to = constraints if line.startswith(("-c", "--constraint")) else into
            _read(method, other, requirements, constraints, to, (*above, path), seen)
        else:
            _check(method, line, f"{path}, line {number}: ")
            kept.append(line)
    if kept:
        into.append("".join(f"{line}\n" for line in kept))


def _lines(method: str, path: Path) -> Iterator[tuple[int, str]]:
    """Lines with what is continued joined, without comments and empty ones."""
    text = _text(method, path)
    begun, first = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        first = first or number
        if raw.endswith("\\"):
            begun += raw.removesuffix("\\")
            continue
        line = re.sub(r"(^|\s+)#.*$", "", begun + raw).strip()
        if line:
            yield first, line
        begun, first = "", 0
    if begun.strip():
        yield first, begun.strip()


def read_pyproject(path: str | Path, groups: Sequence[str]) -> tuple[str, ...]:
    """`project.dependencies` of a pyproject.toml, and the groups named of `project.optional-dependencies`.

    Raises InvalidError where the file or one of them is missing.
    """
    method = "Image.pip_install_from_pyproject"
    file = Path(path).expanduser().absolute()
    if file.is_dir():
        file /= "pyproject.toml"
    project = read_toml(method, file).get("project", {})
    if "dependencies" not in project:
        why = "; they are dynamic, only its build backend knows them" if project.get("dynamic") else ""
        raise InvalidError(f"{method}: {file} has no project.dependencies{why}; give the packages to pip_install")
    optional = cast("dict[str, list[str]]", project.get("optional-dependencies", {}))
    found = list(cast("list[str]", project["dependencies"]))
    for group in groups:
        if group not in optional:
            known = ", ".join(optional) or "none"
            raise InvalidError(f"{method}: {file} has no optional dependencies {group!r}; it has {known}")
        found += optional[group]
    return tuple(found)


def read_toml(method: str, path: Path) -> dict[str, Any]:
    """A TOML file. Raises InvalidError where it cannot be read or is none."""
    import tomllib

    try:
        return tomllib.loads(_text(method, path))
    except tomllib.TOMLDecodeError as error:
        raise InvalidError(f"{method}: {path} is not TOML: {error}") from None


def _text(method: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidError(f"{method}: {path} cannot be read: {os.strerror(error.errno or 0)}") from None
    except UnicodeDecodeError:
        raise InvalidError(f"{method}: {path} is not UTF-8") from None
