"""What the fault tests share: an app that runs in this process, on a server of its own, and a disk that fills up."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from farcall.sdk import client
from tests.conftest import Installation


@pytest.fixture
def small_disk(installation: Installation) -> Iterator[Callable[..., Path]]:
    """Puts the installation's state directory, or one under it, on a disk of so many MiB, and returns it."""
    mounted: list[Path] = []

    def mount(mebibytes: int, under: str = "") -> Path:
        directory = Path(installation.environment["FARCALL_STATE_DIR"], under)
        directory.mkdir(mode=0o700, exist_ok=True)
        options = f"size={mebibytes}m,mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "farcall-test", str(directory)], check=True)
        mounted.append(directory)
        return directory

    yield mount
    installation.farcall("server", "stop", "--force", check=False)
    for directory in mounted:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.fixture
def run_app(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Runs the app of one of the modules here in this process, from when it is asked to until the test ends; returns
    the module."""
    with ExitStack() as running:

        def run(name: str) -> Any:
            for variable, value in installation.environment.items():
                monkeypatch.setenv(variable, value)
            monkeypatch.syspath_prepend(str(Path(__file__).parent))
            monkeypatch.setattr(client, "_current", None)  # another test's server is not to be used
            sys.modules.pop(name, None)
            module = importlib.import_module(name)
            running.enter_context(module.app.run())
            return module

        yield run
