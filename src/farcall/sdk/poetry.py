"""A local poetry project, for `Image.poetry_install_from_file`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from farcall.errors import InvalidError

if TYPE_CHECKING:
    from farcall.sdk.image_options import Options


def files(method: str, project: str | Path, lock: str | Path | None, options: Options) -> dict[str, Path]:
    """The files of the project that an image needs, by name. Raises InvalidError where one is missing."""
    pyproject = Path(project).expanduser().absolute()
    if pyproject.is_dir():
        pyproject /= "pyproject.toml"
    if not pyproject.is_file():
        raise InvalidError(f"{method}: there is no file {pyproject}")
    if options.given.get("ignore_lockfile"):
        return {"pyproject.toml": pyproject}
    lockfile = pyproject.parent / "poetry.lock" if lock is None else Path(lock).expanduser().absolute()
    if not lockfile.is_file():
        raise InvalidError(
            f"{method}: there is no file {lockfile}; `poetry lock` makes it, or write ignore_lockfile=True"
        )
    return {"pyproject.toml": pyproject, "poetry.lock": lockfile}


def command(options: Options) -> str:
    """The command that installs what the project in /.poetry needs."""
    words = ["poetry", "install", "--no-root", "--no-interaction"]
    for option in ("with_", "without", "only"):
        if groups := options.words(option):
            words.append(f"--{option.removesuffix('_')}={','.join(groups)}")
    installer = "poetry config experimental.new-installer false && " if options.given.get("old_installer") else ""
    return f"cd /.poetry && {installer}{shlex.join(words)}"
