"""The wheel alone is enough: installed by pip, uv or pipx, as an ordinary user, with no compiler."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from uv import find_uv_bin

import farcall

REPOSITORY = Path(__file__).resolve().parents[2]
HELLO = REPOSITORY / "examples/hello.py"
UV = Path(find_uv_bin())  # what pip would install as `uv`


class Built(Protocol):
    wheel: Path


class User(Protocol):
    home: Path
    environment: dict[str, str]

    def run(self, *command: str | Path, timeout: float = 120) -> str: ...
    def give(self, source: Path) -> Path: ...


def with_pip(user: User, wheel: Path, python: str) -> Path:
    user.run(python, "-m", "venv", user.home / "venv")
    user.run(user.home / "venv/bin/pip", "install", "--quiet", "--only-binary=:all:", wheel)
    return user.home / "venv/bin/farcall"


def with_uv(user: User, wheel: Path, python: str) -> Path:
    user.run(user.give(UV), "tool", "install", "--no-build", "--python", python, wheel)
    return user.home / ".local/bin/farcall"


def with_pipx(user: User, wheel: Path, python: str) -> Path:
    user.run(user.give(UV), "venv", "--quiet", "--python", python, user.home / "tools")
    user.run(user.home / UV.name, "pip", "install", "--quiet", "--python", user.home / "tools/bin/python", "pipx")
    user.run(user.home / "tools/bin/pipx", "install", "--python", python, wheel)
    return user.home / ".local/bin/farcall"


@pytest.mark.parametrize("install", [with_pip, with_uv, with_pipx])
def test_an_ordinary_user_with_only_the_wheel_runs_hello(
    install: Callable[[User, Path, str], Path], distributions: Built, ordinary_user: User, system_python: str
) -> None:
    command = install(ordinary_user, ordinary_user.give(distributions.wheel), system_python)
    assert ordinary_user.run(command, "--version").strip() == f"farcall {farcall.__version__}"
    try:
        output = ordinary_user.run(command, "run", ordinary_user.give(HELLO), "--name", "wheel")
    finally:
        ordinary_user.run(command, "server", "stop")
    assert "Hello, wheel!" in output
