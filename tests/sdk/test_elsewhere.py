"""The links to servers on other machines, as programs here see them."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from farcall import settings
from farcall.sdk import elsewhere
from farcall.settings.paths import LINK_PREFIX
from tests.conftest import short_directory


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with short_directory() as root:
        monkeypatch.setenv("FARCALL_STATE_DIR", os.fspath(root))
        yield settings.paths().runtime


def test_the_end_of_links_ends_nobody_who_has_the_number_of_one_that_was_killed(runtime: Path) -> None:
    """Numbers of processes are given again, and a link that was killed leaves its own behind."""
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            (runtime / f"{LINK_PREFIX}12345678").touch()
            (runtime / f"{LINK_PREFIX}12345678.lock").write_text(f"{other.pid} ssh://box")
            elsewhere.end_links("ssh://box")
            with pytest.raises(subprocess.TimeoutExpired):
                other.wait(0.5)
        finally:
            other.kill()
