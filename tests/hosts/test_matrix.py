"""The host matrix in the test run: one test a row, from one installation."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MATRIX = Path(__file__).with_name("matrix.py")
LISTED = subprocess.run([sys.executable, MATRIX, "--list"], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def farcall() -> Iterator[str]:
    """The wheel's `farcall`, installed where every user may run it, which pytest's own directories do not allow."""
    with tempfile.TemporaryDirectory(prefix="fh-", dir="/tmp") as directory:
        prepared = subprocess.run([sys.executable, MATRIX, "--prepare", directory], capture_output=True, text=True)
        assert prepared.returncode == 0, prepared.stderr
        yield prepared.stdout.strip()


@pytest.mark.parametrize("row", LISTED.splitlines())
def test_a_host(row: str, farcall: str) -> None:
    done = subprocess.run([sys.executable, MATRIX, "--farcall", farcall, row], capture_output=True, text=True)
    if "skipped" in done.stdout:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
