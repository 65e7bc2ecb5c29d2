"""`Image`: what a container's file system holds.

This version has one image, the default: the project's own interpreter with everything installed in it, and the user's
source. What an `Image` adds to it without a build works (environment variables, local files, packages that are there
already); everything else is remembered, and named in the error when a function with that image is called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Concatenate, ParamSpec

from farcall.errors import InvalidError
from farcall.sdk.context import is_local
from farcall.sdk.deprecations import deprecated
from farcall.sdk.unimplemented import later
from farcall.spec.container import Bind

__all__ = ["Image"]

P = ParamSpec("P")

_OLD_NAMES = {
    "copy_local_file": "add_local_file",
    "copy_local_dir": "add_local_dir",
}


class Image:
    """A container's file system, as steps on a base. Every method returns a new image; nothing is built by it."""

    def __init__(self) -> None:
        self._steps: tuple[str, ...] = ()  # steps that need a build
        self._packages: tuple[str, ...] = ()  # requirements
        self._env: dict[str, str] = {}
        self._binds: tuple[Bind, ...] = ()
        self._modules: tuple[str, ...] = ()

    def _changed(self, **changes: Any) -> Image:
        image = Image()
        image.__dict__.update(self.__dict__, **changes)
        return image

    def _needs_build(self, step: str) -> Image:
        return self._changed(_steps=(*self._steps, step))

    # --- bases

    @classmethod
    def debian_slim(cls, python_version: str | None = None, force_build: bool = False) -> Image:
        """The default image, with the Python of this project. Another `python_version` needs a build."""
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        if python_version is None or python_version in (here, f"{here}.{sys.version_info.micro}"):
            return cls()
        return cls()._needs_build(f"Image.debian_slim(python_version={python_version!r}), as this is Python {here}")

    @classmethod
    def from_registry(cls, tag: str, *args: Any, **kwargs: Any) -> Image:
        """An image of a container registry."""
        return cls()._needs_build(f"Image.from_registry({tag!r})")

    @classmethod
    def from_dockerfile(cls, path: str | Path, **kwargs: Any) -> Image:
        """What a Dockerfile builds."""
        return cls()._needs_build(f"Image.from_dockerfile({str(path)!r})")

    @classmethod
    def from_scratch(cls, force_build: bool = False) -> Image:
        """An empty image."""
        return cls()._needs_build("Image.from_scratch()")

    @classmethod
    def micromamba(cls, python_version: str | None = None, force_build: bool = False) -> Image:
        """A base with a conda environment."""
        return cls()._needs_build("Image.micromamba()")

    @classmethod
    def from_aws_ecr(cls, tag: str, *args: Any, **kwargs: Any) -> Image:
        """An image of Amazon's registry."""
        return cls()._needs_build(f"Image.from_aws_ecr({tag!r})")

    @classmethod
    def from_gcp_artifact_registry(cls, tag: str, *args: Any, **kwargs: Any) -> Image:
        """An image of Google's registry."""
        return cls()._needs_build(f"Image.from_gcp_artifact_registry({tag!r})")

    @classmethod
    def from_id(cls, image_id: str, client: Any = None) -> Image:
        """The image with that id."""
        return cls()._needs_build(f"Image.from_id({image_id!r})")

    @classmethod
    def from_name(cls, name: str, *, environment_name: str | None = None, client: Any = None) -> Image:
        """The image published under that name."""
        return cls()._needs_build(f"Image.from_name({name!r})")

    # --- packages

    def pip_install(self, *packages: str | list[str], **options: Any) -> Image:
        """Python packages. Those that this project's interpreter has, in a fitting version, need no build."""
        return self._install("pip_install", packages, options)

    def uv_pip_install(
        self, *packages: str | list[str], requirements: list[str] | None = None, **options: Any
    ) -> Image:
        """Python packages, installed by uv. Those that this project's interpreter has need no build."""
        lines = [line for path in requirements or () for line in _requirement_lines(path)]
        return self._install("uv_pip_install", (*packages, lines), options)

    def pip_install_from_requirements(self, requirements_txt: str, *args: Any, **options: Any) -> Image:
        """The packages of a requirements file. Those that this project's interpreter has need no build."""
        return self._install("pip_install_from_requirements", (_requirement_lines(requirements_txt),), options)

    def _install(self, method: str, packages: tuple[str | list[str], ...], options: Mapping[str, Any]) -> Image:
        names = _flat(method, packages)
        for name in names:
            if name.startswith("-"):
                raise InvalidError(f"Image.{method}: {name!r} is an option, not a package; use the keyword arguments")
        return self._changed(_packages=(*self._packages, *names))

    def uv_sync(self, uv_project_dir: str = "./", **options: Any) -> Image:
        """The packages of a uv project."""
        return self._needs_build("Image.uv_sync")

    def pip_install_from_pyproject(self, pyproject_toml: str, *args: Any, **options: Any) -> Image:
        """The dependencies of a pyproject.toml."""
        return self._needs_build("Image.pip_install_from_pyproject")

    def pip_install_private_repos(self, *repositories: str, git_user: str, **options: Any) -> Image:
        """Packages of private git repositories."""
        return self._needs_build("Image.pip_install_private_repos")

    def poetry_install_from_file(self, poetry_pyproject_toml: str, *args: Any, **options: Any) -> Image:
        """The packages of a poetry project."""
        return self._needs_build("Image.poetry_install_from_file")

    def micromamba_install(self, *packages: str | list[str], **options: Any) -> Image:
        """conda packages."""
        return self._needs_build(f"Image.micromamba_install({', '.join(_flat('micromamba_install', packages))})")

    def apt_install(self, *packages: str | list[str], **options: Any) -> Image:
        """Debian packages."""
        return self._needs_build(f"Image.apt_install({', '.join(_flat('apt_install', packages))})")

    # --- build steps

    def run_commands(self, *commands: str | list[str], **options: Any) -> Image:
        """Shell commands."""
        return self._needs_build("Image.run_commands")

    def dockerfile_commands(self, *dockerfile_commands: str | list[str], **options: Any) -> Image:
        """Lines of a Dockerfile."""
        return self._needs_build("Image.dockerfile_commands")

    def run_function(self, raw_f: Callable[..., Any], **options: Any) -> Image:
        """A Python function as a build step."""
        return self._needs_build(f"Image.run_function({getattr(raw_f, '__name__', raw_f)})")

    def env(self, vars: Mapping[str, str]) -> Image:
        """Environment variables; the functions' own come after them."""
        for name, value in vars.items():
            if not isinstance(name, str) or not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidError(f"Image.env: {name!r}={value!r}: names and values are strings")
        return self._changed(_env=self._env | dict(vars))

    def workdir(self, path: str | PurePosixPath) -> Image:
        """The folder in which containers start; the default is /root."""
        return self if str(path).rstrip("/") == "/root" else self._needs_build(f"Image.workdir({str(path)!r})")

    def entrypoint(self, entrypoint_commands: list[str]) -> Image:
        """A program that starts the runner."""
        return self if not entrypoint_commands else self._needs_build("Image.entrypoint")

    def cmd(self, cmd: list[str]) -> Image:
        """What a sandbox of this image runs; functions do not use it."""
        return self

    def shell(self, shell_commands: list[str]) -> Image:
        """The shell of `run_commands`."""
        return self._needs_build("Image.shell")

    def pipe(self, func: Callable[Concatenate[Image, P], Image], *args: P.args, **kwargs: P.kwargs) -> Image:
        """`func(image, ...)`, for chains."""
        return func(self, *args, **kwargs)

    # --- local files

    def add_local_file(self, local_path: str | Path, remote_path: str, *, copy: bool = False) -> Image:
        """A local file, at the absolute path `remote_path`, or under its own name in it where that ends in a slash."""
        local = Path(local_path).expanduser().absolute()
        target = _remote_path("add_local_file", remote_path)
        if remote_path.endswith("/"):
            target = f"{target.rstrip('/')}/{local.name}"
        if is_local() and not local.is_file():
            raise InvalidError(f"Image.add_local_file: there is no file {local}")
        return self._changed(_binds=(*self._binds, Bind(str(local), target)))

    def add_local_dir(
        self,
        local_path: str | Path,
        remote_path: str,
        *,
        copy: bool = False,
        ignore: Sequence[str] | Callable[[Path], bool] = (),
    ) -> Image:
        """A local folder with all that is in it, at the absolute path `remote_path`."""
        local = Path(local_path).expanduser().absolute()
        target = _remote_path("add_local_dir", remote_path)
        if is_local() and not local.is_dir():
            raise InvalidError(f"Image.add_local_dir: there is no folder {local}")
        if ignore:
            return self._needs_build("Image.add_local_dir(ignore=...)")
        return self._changed(_binds=(*self._binds, Bind(str(local), target)))

    def add_local_python_source(
        self, *modules: str, copy: bool = False, ignore: Sequence[str] | Callable[[Path], bool] | None = None
    ) -> Image:
        """Modules and packages that are importable here, made importable in the container."""
        for module in modules:
            if not isinstance(module, str) or "/" in module or module.endswith(".py"):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidError(f"Image.add_local_python_source takes names of modules, not {module!r}")
        return self._changed(_modules=(*self._modules, *modules))

    def __getattr__(self, name: str) -> Any:
        if name not in _OLD_NAMES:
            raise AttributeError(f"'Image' object has no attribute {name!r}")
        deprecated(f"Image.{name} is now Image.{_OLD_NAMES[name]}")
        return getattr(self, _OLD_NAMES[name])

    @contextmanager
    def imports(self) -> Generator[None]:
        """Imports that only containers need: an ImportError inside the block is ignored here, and raised there."""
        try:
            yield
        except ImportError:
            if not is_local():
                raise

    # --- what is left

    @later
    def build(self) -> Any:
        """Builds the image now."""

    @later
    def publish(self) -> Any:
        """Gives the image a name."""

    @later
    def logs(self) -> Any:
        """What the build printed."""

    def unimplemented(self) -> list[str]:
        """The steps that this version cannot do. Looks at what is installed."""
        return [*self._steps, *_not_installed(self._packages)]

    @property
    def packages(self) -> tuple[str, ...]:
        """The requirements given to the install methods."""
        return self._packages

    @property
    def environment(self) -> dict[str, str]:
        """The variables given to `env`."""
        return dict(self._env)

    def mounts(self) -> tuple[tuple[str, ...], tuple[Bind, ...]]:
        """Folders for `sys.path`, and mounts, of the local files and modules."""
        from farcall.sdk.source import mounts_of

        folders: list[str] = []
        binds = list(self._binds)
        for module in self._modules:
            module_folders, module_binds = mounts_of(module)
            folders += module_folders
            binds += module_binds
        if any(f"{bind.target}/".startswith("/root/") for bind in self._binds):
            folders.append("/root")
        return tuple(dict.fromkeys(folders)), tuple(dict.fromkeys(binds))

    def __repr__(self) -> str:
        steps = [*self._steps, *self._packages]
        return f"<farcall.Image {', '.join(steps) if steps else 'default'}>"


def _flat(method: str, names: tuple[str | list[str], ...]) -> list[str]:
    flat: list[str] = []
    for name in names:
        if isinstance(name, str):
            flat.append(name)
        elif isinstance(name, (list, tuple)) and all(isinstance(part, str) for part in name):  # pyright: ignore[reportUnnecessaryIsInstance]
            flat += name
        else:
            raise InvalidError(f"Image.{method}: {name!r} is neither a string nor a list of strings")
    return flat


def _remote_path(method: str, path: str) -> str:
    target = os.path.normpath(str(path))
    if not target.startswith("/"):
        raise InvalidError(f"Image.{method}: remote_path={str(path)!r} is not absolute; write /root/{path} or the like")
    return target


def _requirement_lines(path: str) -> list[str]:
    if not is_local():
        return []
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidError(f"Image: the requirements file {path} cannot be read: {error.strerror}") from error
    lines = (line.partition(" #")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _not_installed(requirements: Sequence[str]) -> list[str]:
    """The requirements that the project's interpreter does not meet, as features for a message."""
    if not requirements:
        return []
    from importlib.metadata import PackageNotFoundError, version

    lacking: list[str] = []
    for requirement in requirements:
        name, condition = _split(requirement)
        try:
            installed = version(name)
        except (PackageNotFoundError, ValueError):
            lacking.append(f"Image.pip_install({requirement!r}) of a package that is not installed in {sys.executable}")
            continue
        if not _fits(installed, condition):
            lacking.append(
                f"Image.pip_install({requirement!r}) where {installed} is what is installed in {sys.executable}"
            )
    return lacking


def _split(requirement: str) -> tuple[str, str]:
    """`"numpy[x]>=1,<2; python_version > '3'"` as `("numpy", ">=1,<2")`."""
    text = requirement.partition(";")[0].strip()
    end = next((place for place, letter in enumerate(text) if not (letter.isalnum() or letter in "._-")), len(text))
    name, rest = text[:end], text[end:].strip()
    if rest.startswith("["):
        rest = rest.partition("]")[2].strip()
    return name, rest.strip("() ")


def _fits(installed: str, condition: str) -> bool:
    """Whether a version meets a requirement's comma-separated conditions, compared as release numbers (PEP 440)."""
    if condition.startswith("@"):
        return False
    for clause in filter(None, (part.strip() for part in condition.split(","))):
        operator = next(
            (sign for sign in ("===", "==", "!=", "~=", ">=", "<=", ">", "<") if clause.startswith(sign)), ""
        )
        wanted = clause.removeprefix(operator).strip()
        if not _compare(installed, operator, wanted):
            return False
    return True


def _compare(installed: str, operator: str, wanted: str) -> bool:
    if operator in ("==", "!=", "==="):
        if wanted.endswith(".*"):
            prefix = _release(wanted[:-2])
            equal = _release(installed)[: len(prefix)] == prefix
        else:
            equal = installed == wanted or installed.partition("+")[0] == wanted or _padded(installed, wanted)
        return equal != (operator == "!=")
    mine, theirs = _release(installed), _release(wanted)
    width = max(len(mine), len(theirs))
    mine, theirs = mine + (0,) * (width - len(mine)), theirs + (0,) * (width - len(theirs))
    if operator == "~=":
        fixed = _release(wanted)[:-1]
        return mine >= theirs and mine[: len(fixed)] == fixed
    return {">=": mine >= theirs, "<=": mine <= theirs, ">": mine > theirs, "<": mine < theirs}.get(operator, False)


def _padded(installed: str, wanted: str) -> bool:
    mine, theirs = _release(installed), _release(wanted)
    width = max(len(mine), len(theirs))
    plain = all(letter.isdigit() or letter == "." for letter in installed.partition("+")[0] + wanted)
    return plain and mine + (0,) * (width - len(mine)) == theirs + (0,) * (width - len(theirs))


def _release(version: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in version.partition("+")[0].split("."):
        digits = ""
        for letter in part:
            if not letter.isdigit():
                break
            digits += letter
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
