"""A map that takes its time, and what is looked at meanwhile."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.machines import WITHIN, Cluster, WorkerMachine

PROGRAM = """
import sys, time
import farcall

app = farcall.App("steady")


@app.function(max_containers=4)
def work(x):
    time.sleep(SECONDS)
    return x, bytes(SIZE)


@app.local_entrypoint()
def main(count: int):
    found = []
    print("begun", file=sys.stderr, flush=True)
    for x, _ in work.map(range(count), order_outputs=False):
        found.append(x)
        if len(found) == count // 5:
            print("under way", file=sys.stderr, flush=True)
    assert sorted(found) == list(range(count)), len(found)
    print("all", len(found))
"""


class Map:
    """A map that runs, in a process of its own."""

    def __init__(self, made: Cluster, tmp_path: Path, count: int, seconds: float, size: int = 0) -> None:
        program = tmp_path / "steady.py"
        program.write_text(PROGRAM.replace("SECONDS", str(seconds)).replace("SIZE", str(size)))
        command = [sys.executable, "-m", "farcall", "run", "--quiet", str(program), "--count", str(count)]
        pipe = subprocess.PIPE
        self.count = count
        self.process = subprocess.Popen(command, env=made.server.environment, stdout=pipe, stderr=pipe, text=True)
        assert self.process.stderr is not None
        said: list[str] = []
        while "under way\n" not in said:
            said.append(self.process.stderr.readline())
            assert said[-1], f"it ended: {said}"
        self.began = time.monotonic()

    def result(self) -> float:
        """Seconds from when it was under way to its end; all results have come, each once."""
        out, err = self.process.communicate(timeout=WITHIN)
        assert self.process.returncode == 0, err
        assert out.split() == ["all", str(self.count)], out
        return time.monotonic() - self.began


def listing(made: Cluster) -> list[dict[str, Any]]:
    return json.loads(made.server.farcall("worker", "list", "--json").stdout)


def states(made: Cluster) -> dict[str, str]:
    return {one["name"]: one["state"] for one in listing(made)}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def is_back(made: Cluster, worker: WorkerMachine) -> Callable[[], bool]:
    return lambda: states(made)[worker.name] == "ready"
