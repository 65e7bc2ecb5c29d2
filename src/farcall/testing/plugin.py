"""The pytest plugin: the fixture `farcall_run`, and the option `--farcall-containers`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from farcall.sdk.app import App
    from farcall.testing.run import Run
    from farcall.testing.server import Server


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    parser.getgroup("farcall").addoption(
        "--farcall-containers",
        action="store_true",
        help="run the apps of farcall_run in containers of this machine, in place of this process",
    )


@pytest.fixture(scope="session")
def farcall_server(request: pytest.FixtureRequest) -> Generator[Server | None]:
    """The server that `farcall_run` uses: with `--farcall-containers` one for all tests, otherwise none."""
    if not request.config.getoption("--farcall-containers"):
        yield None
        return
    from farcall.testing.server import Server

    with Server() as server:
        yield server


@pytest.fixture
def farcall_run(farcall_server: Server | None) -> Generator[Callable[[App], Run]]:
    """Runs an app until the test ends: `run = farcall_run(app)`, see `farcall.testing.run`."""
    from farcall.testing.run import run

    with ExitStack() as stack:
        yield lambda app: stack.enter_context(run(app, server=farcall_server))
