"""The pytest plugin: the fixture `farcall_run`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from farcall.sdk.app import App
    from farcall.testing.run import Run


@pytest.fixture
def farcall_run() -> Generator[Callable[[App], Run]]:
    """Runs an app until the test ends: `run = farcall_run(app)`, see `farcall.testing.run`."""
    from farcall.testing.run import run

    with ExitStack() as stack:
        yield lambda app: stack.enter_context(run(app))
