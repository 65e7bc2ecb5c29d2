"""Collections under load: real processes add, rely on, let go of and collect the same content, and are killed at it.

Each process knows what must be alive for it, and looks all the time (`gc_worker.py`); in the end nothing else is there.
"""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from farcall.content import Store
from farcall.content.gc import collect

from .gc_worker import alive

WORKER = Path(__file__).with_name("gc_worker.py")
SECONDS = 4.0
PATIENCE = 60.0
TURNS = 3  # of each collector, at least


class Worker:
    """A process, and how many rounds it has gone."""

    def __init__(self, store: Store, what: str, name: str, rng: random.Random) -> None:
        command = [sys.executable, WORKER, store.root, what, name, str(rng.randrange(2**31))]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.rounds = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.rounds = int(line)

    def end(self) -> str:
        """Waits for its end; what it said on stderr."""
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            said = stream.read()
        self.process.wait()
        self._reader.join()
        return said


def objects(store: Store) -> set[bytes]:
    return {bytes.fromhex(path.parent.name + path.name) for path in store.objects.glob("*/*")}


def test_what_must_be_alive_is_and_nothing_else(store: Store, rng: random.Random) -> None:
    users = {name: Worker(store, "use", name, rng) for name in ("ada", "bob", "eve")}
    collectors = [Worker(store, "collect", f"collector{number}", rng) for number in range(2)]
    began = time.monotonic()
    killed = 0
    try:
        while time.monotonic() - began < SECONDS or min(one.rounds for one in collectors) < TURNS:
            assert time.monotonic() - began < PATIENCE, "collections do not get their turn"
            time.sleep(rng.uniform(0.05, 0.2))
            name = rng.choice(sorted(users))
            if users[name].process.poll() is None and rng.random() < 0.3:
                users[name].process.kill()
                users[name].end()
                killed += 1
                users[name] = Worker(store, "use", name, rng)
    finally:
        (store.root.parent / "stop").touch()
    for worker in (*users.values(), *collectors):
        said = worker.end()
        assert worker.process.returncode == 0, said
    print(f"rounds: {[worker.rounds for worker in (*users.values(), *collectors)]}; killed: {killed}")

    collect(store)
    trees, kept = alive(store.records(), store)
    assert {path.name for path in (store.root / "trees").iterdir()} == trees
    assert objects(store) == kept
    assert [*(store.root / "incoming").iterdir(), *(store.root / "leases").iterdir()] == []
    for digest in kept:
        store.read(digest)
