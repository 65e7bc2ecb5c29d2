"""Runner, server (with its worker) and launcher are killed at random under load, and nothing acknowledged is lost.

Each spawned call gives its caller one result, each `.remote` a result or ConnectionLostError; in the end no process,
mount or cgroup stays behind.
"""

import importlib
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import farcall
from farcall.launcher.process import LOCK_NAME
from tests.conftest import Installation, descendants, leftovers, snapshot

ROUNDS = 50
LONG_ROUNDS = 1000
PATIENCE = 60.0  # seconds that a call may take over all the kills of its round
TARGETS = ("runner", "server", "launcher")


@pytest.fixture
def app(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The app, run by this process; farcall is imported anew so that nothing is left of another test's server."""
    for name, value in installation.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    sys.modules.pop("programs", None)
    programs = importlib.import_module("programs")
    with programs.app.run():
        yield programs


def find(target: str, root: Path) -> list[int]:
    """The pids of what is to be killed, among the processes below this one."""
    found: list[int] = []
    for pid, command in descendants().items():
        try:
            inner = next(
                line.split()[1:]
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if line.startswith("NSpid")
            )
        except (OSError, StopIteration):
            continue
        if (target == "runner" and len(inner) > 1 and inner[-1] == "2") or (
            target == "launcher" and "farcall.launcher --state" in command and str(root) in command and len(inner) == 1
        ):
            found.append(pid)
    return found


def kill(target: str, root: Path) -> bool:
    """Kills one process of that kind; False where there is none just now."""
    if target == "server":
        from farcall.sdk import client

        current = client._current  # pyright: ignore[reportPrivateUsage] - asking for one would start it
        pids = [current.server.pid] if current is not None and current.server is not None else []
    else:
        pids = find(target, root)
    for pid in pids[:1]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True
    return False


def fetch(call: Any) -> Any:
    """The result of a spawned call, asked for again where only the question was lost: the call is durable."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call.get(timeout=PATIENCE)
        except farcall.errors.ConnectionLostError:
            if time.monotonic() > deadline:
                raise


class Callers:
    """Threads that call without pause, and what came of it."""

    def __init__(self, programs: Any) -> None:
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._programs = programs
        self._numbers = itertools.count(2)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._loop, args=(work,))
            for work in (self._remote, self._remote, self._spawn, self._spawn)
        ]
        for thread in self._threads:
            thread.start()

    def _loop(self, work: Callable[[int], str]) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            try:
                self.outcomes[work(number)] += 1
            except BaseException as error:
                self.wrong.append(f"{work.__name__}({number}): {type(error).__name__}: {error}")

    def _remote(self, number: int) -> str:
        try:
            result = self._programs.square.remote(number)
        except farcall.errors.ConnectionLostError:
            return "remote lost"
        if result != number * number:
            self.wrong.append(f"remote({number}) = {result}")
        return "remote"

    def _spawn(self, number: int) -> str:
        try:
            call = self._programs.square.spawn(number)
        except farcall.errors.ConnectionLostError:
            return "spawn not acknowledged"
        result = fetch(call)
        if result != number * number or fetch(call) != result:
            self.wrong.append(f"spawn({number}) = {result}")
        return "spawn"

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"a caller hangs; so far {self.outcomes}"


def run_rounds(programs: Any, installation: Installation, rng: random.Random, rounds: int) -> None:
    before = snapshot(installation.root)
    killed: Counter[str] = Counter()
    assert programs.square.remote(3) == 9
    callers = Callers(programs)
    try:
        for _ in range(rounds):
            done = sum(callers.outcomes.values())
            target = rng.choice(TARGETS)
            killed[target] += kill(target, installation.root)
            # The next kill comes when the load has felt this one, at some point of its recovery.
            wanted = done + rng.randint(1, 12)
            deadline = time.monotonic() + PATIENCE
            while sum(callers.outcomes.values()) < wanted and time.monotonic() < deadline and not callers.wrong:
                time.sleep(0.005)
            if callers.wrong:
                break
    finally:
        callers.finish()
    assert not callers.wrong, f"{callers.wrong[:5]} after {killed}, {callers.outcomes}"
    assert callers.outcomes["remote"] > 0
    assert callers.outcomes["spawn"] > 0
    assert all(killed[target] > 0 for target in TARGETS), killed
    assert before is not None


def test_nothing_acknowledged_is_lost(app: Any, installation: Installation, rng: random.Random) -> None:
    run_rounds(app, installation, rng, ROUNDS)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_nothing_acknowledged_is_lost_for_long(app: Any, installation: Installation, rng: random.Random) -> None:
    run_rounds(app, installation, rng, LONG_ROUNDS)


def test_a_launcher_that_hangs_is_replaced(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app stops though its launcher does not answer, and the next one runs; the server ends as well."""
    installation.environment["FARCALL_LAUNCHER_PATIENCE"] = "1"
    for name, value in installation.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    sys.modules.pop("programs", None)
    programs = importlib.import_module("programs")
    lock = Path(installation.environment["FARCALL_STATE_DIR"]) / "launcher" / LOCK_NAME
    with programs.app.run():
        assert programs.square.remote(3) == 9
        hung = lock.read_text()
        os.kill(int(hung), signal.SIGSTOP)
    with programs.app.run():
        assert programs.square.remote(4) == 16
        assert lock.read_text() != hung
        os.kill(int(lock.read_text()), signal.SIGSTOP)
    before = time.monotonic()
    installation.farcall("server", "stop", "--force")
    assert time.monotonic() - before < 40


def test_a_killed_client_leaves_nothing_running(installation: Installation, tmp_path: Path) -> None:
    """The program is killed in the middle of a call: its app stops, with its containers."""
    import subprocess

    program = tmp_path / "dies.py"
    program.write_text(
        "import os, signal, farcall\n"
        "app = farcall.App('dies')\n"
        "@app.function()\n"
        "def sleep():\n"
        "    import time\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    with app.run():\n"
        "        call = sleep.spawn()\n"
        "        print('spawned', flush=True)\n"
        "        signal.pause()\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(program)], env=installation.environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "spawned\n"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while "0 apps, 0 containers" not in (status := installation.farcall("server", "status").stdout):
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    assert not leftovers(installation.root, snapshot(installation.root))
