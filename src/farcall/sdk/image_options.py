"""What the methods of `Image` accept, and the checks of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from farcall.errors import InvalidError

if TYPE_CHECKING:
    from farcall.sdk.cloud_bucket_mount import CloudBucketMount
    from farcall.sdk.network_file_system import NetworkFileSystem
    from farcall.sdk.secret import Secret
    from farcall.sdk.volume import Volume

Ignore = Sequence[str] | Callable[[Path], bool]

AUTO_IGNORE: tuple[str, ...] = ("<the .dockerignore file>",)  # the default of ignore=, told by identity

OLDEST_PYTHON = (3, 11)


class StepOptions(TypedDict, total=False):
    """What every step that runs something accepts.

    `env`, `secrets`: environment variables for the time of the step. `force_build`: build it, and the steps after it,
    even if it was built before.
    """

    env: Mapping[str, str | None] | None
    secrets: Collection[Secret] | None
    gpu: str | list[str] | None
    force_build: bool


class IndexOptions(StepOptions, total=False):
    """What the steps accept that install Python packages: options of pip and uv, beyond `StepOptions`.

    `index_url` in place of PyPI, `extra_index_url` besides. `pre`: also pre-releases. `extra_options`: for the command
    line, such as "--no-deps".
    """

    index_url: str | None
    extra_index_url: str | None
    pre: bool
    extra_options: str


class PipOptions(IndexOptions, total=False):
    """`find_links`: a page, or a folder of the image, with packages; the rest as `IndexOptions`."""

    find_links: str | None


class UvPipOptions(PipOptions, total=False):
    """`requirements`: local requirements files. `uv_version`: which uv, default the one at hand."""

    requirements: Sequence[str | Path] | None
    uv_version: str | None


class UvSyncOptions(StepOptions, total=False):
    """`groups`, `extras`: which dependency groups and extras of the project. `frozen`: install what uv.lock says and do
    not look whether it fits pyproject.toml (default). `extra_options`, `uv_version`: as `UvPipOptions`."""

    groups: Sequence[str] | None
    extras: Sequence[str] | None
    frozen: bool
    extra_options: str
    uv_version: str | None


class PoetryOptions(StepOptions, total=False):
    """`with_`, `without`, `only`: groups. `ignore_lockfile`: do not use poetry.lock. `poetry_version`: default the
    latest; None: the one that the image has. `old_installer`: poetry's own before 1.4."""

    ignore_lockfile: bool
    with_: Sequence[str]
    without: Sequence[str]
    only: Sequence[str]
    poetry_version: str | None
    old_installer: bool


class CommandOptions(StepOptions, total=False):
    """`volumes`: mounted for the time of the commands."""

    volumes: Mapping[str | PurePosixPath, Volume] | None


class DockerfileOptions(StepOptions, total=False):
    """`context_dir`: the folder that COPY and ADD read, default the current one. `ignore`: what in it they do not see,
    default what its .dockerignore says. `build_args`: values of ARG. `secrets` are also those of
    `RUN --mount=type=secret,id=NAME`."""

    context_dir: str | Path | None
    ignore: Ignore
    build_args: Mapping[str, str]


class RegistryOptions(TypedDict, total=False):
    """`add_python`: the version of a Python to add, for an image that has none. `setup_dockerfile_commands`: lines of a
    Dockerfile that come first. `force_build`: look the tag up again, and build all steps."""

    setup_dockerfile_commands: Sequence[str]
    force_build: bool
    add_python: str | None


class CallOptions(StepOptions, total=False):
    """What `run_function` accepts: `args` and `kwargs` for the function; cores, MiB and seconds that it gets, as
    `App.function` says; `include_source`: whether its module or package is mounted."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    cpu: float | tuple[float, float] | None
    memory: int | tuple[int, int] | None
    timeout: float
    include_source: bool
    volumes: Mapping[str | PurePosixPath, Volume | CloudBucketMount]
    network_file_systems: Mapping[str | PurePosixPath, NetworkFileSystem]
    cloud: str | None
    region: str | Sequence[str] | None


_LATER = ("gpu", "volumes", "network_file_systems")


class Options(NamedTuple):
    """The options of a step, checked. `unimplemented` names those that this version does not have."""

    given: Mapping[str, Any]
    env: dict[str, str]
    secrets: tuple[Secret, ...]
    force: bool
    unimplemented: tuple[str, ...]

    @classmethod
    def of(cls, method: str, kind: Any, given: Mapping[str, Any]) -> Options:
        """Checks the keyword arguments of a method; `kind` is the TypedDict that has its names."""
        from farcall.sdk.secret import Secret

        known: Mapping[str, Any] = kind.__annotations__
        for name in given:
            if name not in known:
                import difflib

                near = difflib.get_close_matches(name, known, n=1)
                raise InvalidError(
                    f"{method} has no parameter {name!r}{f'; did you mean {near[0]!r}?' if near else ''}"
                )
        secrets: tuple[Any, ...] = tuple(given.get("secrets") or ())
        for secret in secrets:
            if not isinstance(secret, Secret):
                raise InvalidError(f"{method}: {secret!r} in secrets= is no farcall.Secret")
        features = [f"{method}({name}={given[name]!r})" for name in _LATER if given.get(name)]
        return cls(
            given,
            environment(method, given.get("env") or {}),
            secrets,
            bool(given.get("force_build", False)),
            tuple(features),
        )

    def text(self, name: str) -> str:
        """An option that is a string, "" where it is not given."""
        return self.given.get(name) or ""

    def words(self, name: str) -> tuple[str, ...]:
        """An option that is a list of strings."""
        return tuple(self.given.get(name) or ())

    def pip_fields(self) -> dict[str, Any]:
        """The fields of a `Pip` that are options of pip."""
        fields: dict[str, Any] = {name: self.text(name) for name in _PIP_FIELDS}
        return fields | {"pre": bool(self.given.get("pre"))}


_PIP_FIELDS = ("find_links", "index_url", "extra_index_url", "extra_options")


def environment(method: str, env: Mapping[str, str | None]) -> dict[str, str]:
    """Environment variables without those that are None. Raises InvalidError for names and values of another kind."""
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidError(f"{method}: {name!r}={value!r}: names and values are strings")
        if not name or "=" in name or "\0" in name + (value or ""):
            raise InvalidError(f"{method}: {name!r} cannot name an environment variable")
    return {name: value for name, value in env.items() if value is not None}


def names(method: str, what: str, given: tuple[str | Sequence[str], ...]) -> tuple[str, ...]:
    """Arguments that are strings or lists of strings, as one list. `what` names one of them in messages."""
    flat: list[str] = []
    for name in given:
        if isinstance(name, str):
            flat.append(name)
        elif isinstance(name, (list, tuple)) and all(isinstance(part, str) for part in name):  # pyright: ignore[reportUnnecessaryIsInstance]
            flat += name
        else:
            raise InvalidError(f"{method}: {name!r} is neither a string nor a list of strings")
    for name in flat:
        if not name.strip() or "\0" in name:
            raise InvalidError(f"{method}: {name!r} is no {what}")
    return tuple(flat)


def packages(method: str, given: tuple[str | Sequence[str], ...]) -> tuple[str, ...]:
    """Names of packages for an installer, none of which is an option of its command line."""
    found = names(method, "package", given)
    for name in found:
        if name.lstrip().startswith("-"):
            raise InvalidError(f"{method}: {name!r} is an option, not a package; use the keyword arguments")
    return found


def words(method: str, given: Sequence[str]) -> tuple[str, ...]:
    """A command as a list of words."""
    if isinstance(given, str) or not all(isinstance(word, str) for word in given):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidError(f"{method}: {given!r} is not a list of strings, such as ['/bin/bash', '-c']")
    return tuple(given)


def remote_path(method: str, path: str | PurePosixPath) -> str:
    """An absolute path in a container, without a slash at its end."""
    target = os.path.normpath(str(path))
    if not target.startswith("/"):
        raise InvalidError(f"{method}: remote_path={str(path)!r} is not absolute; write /root/{path} or the like")
    return "/" + target.lstrip("/")


def checked_ignore(method: str, ignore: Ignore) -> Ignore:
    """What is ignored; a list as it is now. Raises InvalidError for patterns that are none."""
    from farcall.spec.patterns import Patterns

    if callable(ignore):
        return ignore
    if isinstance(ignore, str):
        raise InvalidError(f"{method}: ignore={ignore!r} is not a list of patterns; write [{ignore!r}]")
    patterns = tuple(ignore)
    Patterns(patterns)
    return patterns


def python_version(method: str, version: str | None) -> str:
    """A version of Python, default this one's "X.Y". Raises InvalidError for one that cannot run functions."""
    import re
    import sys

    if version is None:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    if not isinstance(version, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidError(f'{method}: the version {version!r} is a number; write it as a string, "{version}"')
    found = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)?", version)
    if found is None:
        raise InvalidError(f'{method}: {version!r} is no version of Python; write "3.12" or "3.12.4"')
    if (int(found[1]), int(found[2])) < OLDEST_PYTHON or int(found[1]) > 3:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise InvalidError(f"{method}: containers need Python {oldest} or later, and cannot have {version}")
    return version
