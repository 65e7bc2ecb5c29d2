"""Memory files that a runner keeps for its next result: while there is work, and where the memory is its own."""

import contextlib
import os
import time

import pytest

from .conftest import PATIENCE, Worker

LARGE = 2 * 1024 * 1024

PROGRAM = "def f(size):\n    return b'x' * size\n"
# The same, and says for how long files are kept from then on.
KEEPING = """
from farcall.sdk import shared_memory
{0}def f(size, seconds):
    shared_memory.KEEP_SECONDS = seconds
    return b'x' * size
"""


def files(worker: Worker) -> set[int]:
    """The memory files that the runner holds."""
    found: set[int] = set()
    for name in os.listdir(f"/proc/{worker.pid}/fd"):
        path = f"/proc/{worker.pid}/fd/{name}"
        with contextlib.suppress(FileNotFoundError):  # the runner closes some as we look
            if os.readlink(path).startswith("/memfd:farcall-value"):
                found.add(os.stat(path).st_ino)
    return found


@pytest.mark.parametrize("asynchronous", [False, True])
def test_results_take_turns_in_one_file_until_the_runner_is_idle(worker: Worker, asynchronous: bool) -> None:
    worker.load(KEEPING.format("async " if asynchronous else ""), asynchronous=asynchronous)
    inherited = files(worker)
    long = 5.0 if asynchronous else 600.0  # a loop's timer that is set stays
    assert worker.call(LARGE, long) == worker.call(LARGE, long) == b"x" * LARGE
    held = files(worker)
    assert len(held - inherited) == 1
    assert worker.call(LARGE, long) == b"x" * LARGE
    assert files(worker) == held
    assert worker.call(LARGE, 0.1) == b"x" * LARGE
    deadline = time.monotonic() + PATIENCE
    while files(worker) > inherited:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert worker.call(LARGE, 0.1) == b"x" * LARGE


def test_a_result_that_is_not_taken_keeps_its_content(worker: Worker) -> None:
    worker.load("def f(x):\n    return bytes([x]) * 2_000_000\n")
    first = worker.run((1,), (2,), (3,))
    for value in (4, 5, 6):
        assert worker.call(value) == bytes([value]) * 2_000_000
    assert [worker.outcome(seq)[0] for seq in first] == [1, 2, 3]


def test_nothing_is_kept_under_a_memory_limit(worker: Worker) -> None:
    worker.load(PROGRAM, memory=(128, 512))
    inherited = files(worker)
    assert worker.call(LARGE) == worker.call(LARGE) == worker.call(LARGE)
    worker.call(1)  # by now the last one is sent
    assert files(worker) == inherited
