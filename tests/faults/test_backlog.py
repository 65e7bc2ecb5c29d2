"""Many spawned inputs wait on disk: they cost the server no memory, and a server that is killed loses none of them."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.memory import MIB, peak, server_pid

INPUTS = 5_000
PATIENCE = 60.0


@pytest.fixture
def programs(run_app: Callable[[str], Any]) -> Any:
    """The app of the fault tests, run by this process."""
    return run_app("programs")


def test_queued_inputs_cost_disk_not_memory_and_survive_a_kill(programs: Any) -> None:
    assert programs.plain.remote(1) == 2
    data = bytes(8192)
    before = peak(server_pid())
    blocked = programs.square.spawn_map([3] * INPUTS)  # at 20 ms each, nearly all of them wait
    large = programs.grow.spawn_map([1] * 10, [600.0] * 10)
    queued = programs.size.spawn_map([data] * INPUTS)  # 40 MB of arguments
    assert peak(server_pid()) - before < 24 * MIB

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
    assert peak(server_pid()) - before < 24 * MIB
