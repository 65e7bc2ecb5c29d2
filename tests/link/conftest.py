"""A farcall whose server is on another machine."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Installation, leftovers, short_directory, snapshot
from tests.link.box import SSHD, Box


def make_box(root: Path, name: str = "box", **environment: str) -> Box:
    if not os.path.exists(SSHD) or shutil.which("ssh") is None:
        pytest.skip("needs ssh and sshd (Debian: openssh-client, openssh-server)")
    return Box(root, environment, name)


@pytest.fixture
def box() -> Iterator[Box]:
    """Another machine, with nothing on it."""
    with short_directory() as root:
        yield make_box(root)


class Away:
    """An installation, the machine that its server is on, and programs to run there."""

    def __init__(self, box: Box, near: Installation) -> None:
        self.box = box
        self.near = near

    def program(self, name: str, text: str) -> Path:
        path = self.near.root / name
        path.write_text(text)
        return path


@contextmanager
def server_over_ssh(root: Path, shared: Path) -> Iterator[Away]:
    """An installation whose server is on a new machine. When it has stopped, nothing may stay behind, on either."""
    before = snapshot(root)
    box = make_box(root / "box")
    near = Installation.under(root / "near", shared)
    near.environment |= {"FARCALL_SERVER": box.url, "FARCALL_SSH": box.ssh}
    try:
        yield Away(box, near)
    finally:
        said = near.farcall("server", "stop", "--force").stderr
        if left := leftovers(root, before):
            logs = [path.read_text() for path in sorted(root.rglob("link.log"))]
            lines = [f"stayed behind after `farcall server stop`, which said {said!r}:", *left, *logs]
            pytest.fail("\n".join(lines), pytrace=False)


@pytest.fixture(scope="module")
def away(shared: Path) -> Iterator[Away]:
    """Shared by the tests of a module: farcall is installed there by the first of them."""
    with short_directory() as root, server_over_ssh(root, shared) as away:
        yield away
