"""Templates, from which containers are forked, are the first to go when memory is short."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from farcall.worker import gpus
from farcall.worker.offer import of_this_machine
from tests.memory import server_pid

PATIENCE = 60.0


def children(pid: int) -> list[tuple[int, str]]:
    """The processes that a process has started, with their command lines."""
    found: list[tuple[int, str]] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
            try:
                found.append((int(child), Path(f"/proc/{child}/cmdline").read_text()))
            except (FileNotFoundError, ProcessLookupError):
                pass  # it has ended
    return found


def templates() -> list[int]:
    """Those of this process's server."""
    [launcher] = [pid for pid, command in children(server_pid()) if "farcall.launcher" in command]
    return [pid for pid, command in children(launcher) if "launcher/template.py" in command]


def test_a_template_is_ended_for_a_container_that_needs_its_memory(run_app: Callable[[str], Any]) -> None:
    double = run_app("modest").double
    assert double.remote(1) == 2
    deadline = time.monotonic() + PATIENCE
    while not templates():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # Asked for, not used: all the memory that there is for containers.
    everything = of_this_machine(Path("/"), gpus.Gpus(())).memory
    assert double.with_options(memory=everything).remote(2) == 4
    assert templates() == []
    assert double.remote(3) == 6  # its container starts without one
