"""A server that is asked for more than it may hold turns away the newest work of the app that has the most, and says
so; other apps go on, and nothing acknowledged is lost."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Installation
from tests.memory import MIB, memory_files, peak

HERE = Path(__file__).parent
BOUNDS = {"queue-inputs": 2000, "app-queue-inputs": 1900, "queue-memory": "64MiB", "app-queue-memory": "48MiB"}


@pytest.fixture
def server_pid(installation: Installation) -> int:
    """A server with low bounds."""
    flags = (word for name, value in BOUNDS.items() for word in (f"--{name}", str(value)))
    installation.farcall("server", "start", *flags)
    return status(installation)["pid"]


def status(installation: Installation) -> dict[str, Any]:
    return json.loads(installation.farcall("server", "status", "--json").stdout)


@contextmanager
def greedy(installation: Installation, count: int, size: int, fit: int) -> Iterator[dict[str, Any]]:
    """Runs the greedy program; when it has been turned away, the block; then fills in what became of its calls."""
    program = subprocess.Popen(
        [sys.executable, HERE / "greedy.py", *map(str, (count, size, count - fit))],
        env=installation.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    found: dict[str, Any] = {}
    try:
        assert program.stdout.readline() == "flooded\n"
        yield found
        found.update(json.loads(program.communicate("go\n")[0]))
    finally:
        program.kill()
        program.wait()
        program.stdout.close()


def run(installation: Installation, program: str) -> str:
    done = subprocess.run(
        [sys.executable, HERE / program], env=installation.environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_newest_work_of_the_greediest_app_is_turned_away(installation: Installation, server_pid: int) -> None:
    before = peak(server_pid)
    with greedy(installation, 5_000, 0, fit=1_900) as found:
        assert status(installation)["queued_inputs"] == 1_900
        assert run(installation, "modest.py") == "answered\n"
        assert 1_400 < status(installation)["queued_inputs"] < 1_900
        assert peak(server_pid) - before < 64 * MIB
    # The oldest of them are answered, without a gap; what was acknowledged is answered to the last.
    answered = found["answered"]
    assert answered == list(range(1, len(answered) + 1))
    assert 1_400 < len(answered) < 1_899
    assert found["spawned"] == list(range(10_000, 10_300))
    assert found["errors"] == ["OverloadedError"]
    for said, bound in (
        (found["said"][-1], "app_queue_inputs allows 1,900"),
        (found["said"][0], "queue_inputs allows 2,000"),
    ):
        for word in ("work was turned away and has not run", "app greedy (ap-", bound, ".spawn", "queue-inputs"):
            assert word in said
    assert "in memory: 0 of 2,000 inputs, 0 of 64 MiB" in installation.farcall("server", "status").stdout


def test_large_values_count_by_their_size(installation: Installation, server_pid: int) -> None:
    with greedy(installation, 100, 1_000_000, fit=50) as found:
        assert status(installation)["queued_inputs"] == 50
        assert 47 * MIB < status(installation)["queued_bytes"] <= 48 * MIB
        assert memory_files(server_pid) < 60 * MIB
        assert run(installation, "modest.py") == "answered\n"
    assert found["answered"] == list(range(1, 50))
    assert found["errors"] == ["OverloadedError"]
    assert "app_queue_memory allows 48 MiB" in found["said"][0]
    assert status(installation)["queued_bytes"] == 0
