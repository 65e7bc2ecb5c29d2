"""Many spawned inputs wait on disk: they cost the server no memory, and a server that is killed loses none of them."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farcall.sdk import client

INPUTS = 5_000
PATIENCE = 60.0


@pytest.fixture
def programs(run_app: Callable[[str], Any]) -> Any:
    """The app of the fault tests, run by this process."""
    return run_app("programs")


def server_pid() -> int:
    server = client.current().server
    assert server is not None
    return server.pid


def peak_megabytes(pid: int) -> float:
    """The most memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def test_queued_inputs_cost_disk_not_memory_and_survive_a_kill(programs: Any) -> None:
    assert programs.plain.remote(1) == 2
    data = bytes(8192)
    before = peak_megabytes(server_pid())
    blocked = programs.square.spawn_map([3] * INPUTS)  # at 20 ms each, nearly all of them wait
    large = programs.grow.spawn_map([1] * 10, [600.0] * 10)
    queued = programs.size.spawn_map([data] * INPUTS)  # 40 MB of arguments
    assert peak_megabytes(server_pid()) - before < 24

    killed = server_pid()
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while server_pid() == killed:  # asking for the server starts the next one, once the end of this one is noticed
        assert time.monotonic() < deadline
        time.sleep(0.01)

    assert queued.get(index=INPUTS - 1, timeout=PATIENCE) == len(data)
    assert set(queued.iter(end=500)) == {len(data)}
    assert blocked.get(index=0, timeout=PATIENCE) == 9
    large.cancel()
    blocked.cancel()
    with pytest.raises(Exception, match="cancelled"):
        blocked.get(index=INPUTS - 1)
    assert peak_megabytes(server_pid()) - before < 24
