"""What runs in a container for a step: its command line, and what it sees beside the image."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from farcall.builder.sources import PackageSources
from farcall.errors import ImageBuildError
from farcall.interpreters.private import COMPILE, uv_executable
from farcall.spec.container import Bind, TreeMount
from farcall.spec.image import Apt, Call, ImageConfig, Pip, Run, UvSync

PROJECT = "/.uv"  # where UvSync has its project and the environment
_TOOLS = "/run/farcall/tools"
_UV_CACHE = "/run/farcall/cache/uv"
_FILES = "/run/farcall/files"


class StepFile(NamedTuple):
    """A file that a step is given: its content, and the place where the container sees it."""

    target: str
    content: bytes
    mode: int = 0o444


@dataclass(frozen=True)
class StepCommand:
    """A command in an image. `shown` is the command as people are told of it, without what is ours."""

    argv: tuple[str, ...]
    shown: str
    env: dict[str, str] = field(default_factory=dict[str, str])
    user: str = ""
    workdir: str = ""  # "": the image's
    binds: tuple[Bind, ...] = ()
    trees: tuple[TreeMount, ...] = ()
    files: tuple[StepFile, ...] = ()
    caches: dict[str, str] = field(default_factory=dict[str, str])  # where a shared folder is seen, and its name
    scratch: tuple[str, ...] = ()  # where it sees an empty folder that nobody keeps
    alone: str = ""  # of the commands with the same word one runs at a time
    clamp: bool = False  # files it makes get one fixed time
    cpu: float = 1.0  # cores; its share beside other containers


def of_run(step: Run, config: ImageConfig, sources: PackageSources, secrets: Mapping[str, str]) -> StepCommand:
    """A command of the user's, as the image's user, with ARG values as variables. `secrets` are values by handle."""
    argv = (*config.shell, step.command) if isinstance(step.command, str) else step.command
    shown = step.command if isinstance(step.command, str) else shlex.join(step.command)
    env = sources.env | config.env | config.args | step.env
    caches: dict[str, str] = {}
    for mount in step.mounts:
        if mount.kind == "cache":
            # Any text may be a key, and only some can be a folder's name.
            caches[mount.target] = f"mounts/{hashlib.sha256(mount.key.encode()).hexdigest()}"
    return StepCommand(
        argv,
        shown,
        env,
        user=config.user,
        binds=sources.binds,
        files=tuple(
            StepFile(mount.target, secrets[mount.key].encode(), mount.mode or 0o400)
            for mount in step.mounts
            if mount.kind == "secret"
        ),
        caches=caches,
        scratch=tuple(mount.target for mount in step.mounts if mount.kind == "tmpfs"),
    )


def of_pip(step: Pip, python: str, sources: PackageSources, uv: str) -> StepCommand:
    """`uv pip install` into the image's Python: it resolves as pip does, and takes a fraction of the time."""
    if not python:
        raise ImageBuildError(
            f"there is no Python in the image to install {', '.join(step.packages) or 'packages'} into: choose a base "
            'that has one, or add_python="3.12"'
        )
    options: list[str] = []
    files: list[StepFile] = []
    for flag, texts, name in (
        ("--requirements", step.requirements, "requirements"),
        ("--constraints", step.constraints, "constraints"),
    ):
        for number, text in enumerate(texts):
            target = f"{_FILES}/{name}-{number}.txt"
            files.append(StepFile(target, text.encode()))
            options += [flag, target]
    for flag, value in (
        ("--find-links", step.find_links),
        ("--default-index", step.index_url),
        ("--extra-index-url", step.extra_index_url),
    ):
        if value:
            options += [flag, value]
    if step.extra_index_url and step.installer == "pip":
        options += ["--index-strategy", "unsafe-best-match"]
    if step.pre:
        options += ["--prerelease", "allow"]
    options += shlex.split(step.extra_options)
    argv = (
        f"{_TOOLS}/uv",
        "pip",
        "install",
        "--python",
        python,
        "--break-system-packages",
        *options,
        "--",
        *step.packages,
    )
    env = {**sources.python_env, **_uv_environment(), **step.env}
    if step.index_url:
        for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
            env.pop(name, None)
    shown = shlex.join(["pip", "install", *options, *step.packages])
    return StepCommand(
        argv,
        shown,
        env,
        binds=(Bind(uv, f"{_TOOLS}/uv"), *sources.python_binds),
        files=tuple(files),
        caches={_UV_CACHE: "uv"},
        clamp=True,
    )


def of_uv_sync(step: UvSync, python: str, sources: PackageSources, uv: str) -> StepCommand:
    """`uv sync` of the project that lies at `PROJECT` already."""
    if not python:
        raise ImageBuildError("there is no Python in the image for uv sync: choose a base that has one")
    options = ["--no-install-workspace", "--compile-bytecode"]
    if step.frozen:
        options.append("--frozen")
    for group in step.groups:
        options += ["--group", group]
    for extra in step.extras:
        options += ["--extra", extra]
    options += shlex.split(step.extra_options)
    return StepCommand(
        (f"{_TOOLS}/uv", "sync", "--project", PROJECT, "--python", python, *options),
        shlex.join(["uv", "sync", *options]),
        {**sources.python_env, **_uv_environment(), "UV_PROJECT_ENVIRONMENT": f"{PROJECT}/.venv", **step.env},
        binds=(Bind(uv, f"{_TOOLS}/uv"), *sources.python_binds),
        caches={_UV_CACHE: "uv"},
    )


def of_apt(step: Apt, sources: PackageSources) -> StepCommand:
    """`apt-get install`, whose lists and archives stay out of the image."""
    packages = shlex.join(step.packages)
    script = f"""\
set -e
apt-get -o APT::Sandbox::User=root update
apt-get -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 install --yes --no-install-recommends -- {packages}
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
"""
    env = {"DEBIAN_FRONTEND": "noninteractive", **sources.env, **step.env}
    return StepCommand(
        ("/bin/sh", "-c", script),
        f"apt-get install {packages}",
        env,
        binds=sources.binds,
        caches={"/var/cache/apt/archives": "apt"},
        alone="apt",
    )


def of_call(step: Call, python: str, runner: str, sources: PackageSources, trees: tuple[TreeMount, ...]) -> StepCommand:
    """A function of the user's, called once by the runner's own means."""
    files = (
        StepFile(f"{_FILES}/function", msgspec.msgpack.encode(step.function)),
        StepFile(f"{_FILES}/input", step.input),
    )
    argv = (python, f"{runner}/farcall/runner/call_once.py", files[0].target, files[1].target)
    env = sources.env | step.function.env | {"FARCALL_RUNNER_PATH": runner}
    return StepCommand(
        argv,
        f"{step.function.name}()",
        env,
        binds=(Bind(runner, runner), *sources.binds, *step.function.binds),
        trees=trees,
        files=files,
    )


def check_python(python: str) -> StepCommand:
    """Whether an interpreter that was put into an image works there; gives it pip."""
    program = (
        "import ctypes, hashlib, zlib, ssl\n"
        "for name in ('bz2', 'lzma', 'readline', 'sqlite3', 'uuid'):\n"
        "    try:\n"
        "        __import__(name)\n"
        "    except ImportError as error:\n"
        "        print(f'this Python comes without {name}: {error}')\n"
    )
    script = '"$0" -I -c "$1" && "$0" -m ensurepip --default-pip'
    env = {"PIP_ROOT_USER_ACTION": "ignore"}
    return StepCommand(("/bin/sh", "-c", script, python, program), f"{python} -m ensurepip", env)


def compile_runner(python: str, folder: str) -> StepCommand:
    """Compiles farcall's own files in `folder`, which is this machine's."""
    return StepCommand(
        (python, "-I", "-S", "-c", COMPILE, folder), "compile farcall", binds=(Bind(folder, folder, read_only=False),)
    )


def compile_bytecode(python: str, folders: tuple[str, ...]) -> StepCommand:
    """Compiles what is installed, so that no container has to. Where a file cannot be compiled, nothing is lost."""
    program = (
        "import compileall, os, sys\n"
        "os.nice(19)\n"
        "for folder in sys.argv[1:]:\n"
        "    compileall.compile_dir(folder, quiet=2, workers=os.cpu_count() or 1)\n"
    )
    return StepCommand((python, "-I", "-c", program, *folders), "compile bytecode", clamp=True, cpu=0.02)


def find_uv(version: str, folder: Path) -> str:
    """The path of uv; of version `version`, fetched where that is not the one installed. Raises ImageBuildError."""
    own = uv_executable()
    if own is None:
        raise ImageBuildError("Python packages are installed by uv, which is not here: `pip install uv`")
    if not version or version == _version(own):
        return own
    import subprocess

    place = folder / version
    binary = place / "bin" / "uv"
    if not binary.exists():
        done = subprocess.run(
            [own, "pip", "install", "--quiet", "--no-deps", "--target", str(place), f"uv=={version}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0 or not binary.exists():
            raise ImageBuildError(f"uv {version} cannot be had: {done.stderr.strip().splitlines()[-1:] or 'no output'}")
    return str(binary)


def _version(uv: str) -> str:
    import subprocess

    return subprocess.run([uv, "--version"], capture_output=True, text=True).stdout.split()[1]


def _uv_environment() -> dict[str, str]:
    return {
        "UV_CACHE_DIR": _UV_CACHE,
        # The cache is another mount, over which no link can be made.
        "UV_LINK_MODE": "copy",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }
