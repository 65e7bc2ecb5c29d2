"""Collections under load: real processes add, rely on, let go of and collect the same content, and are killed at it.

Each process knows what must be alive for it, and looks all the time (`gc_worker.py`); in the end nothing else is there.
"""

import random
import subprocess
import sys
import time
from pathlib import Path

from farcall.content import Store
from farcall.content.gc import collect

from .gc_worker import alive

WORKER = Path(__file__).with_name("gc_worker.py")
SECONDS = 4.0


def start(store: Store, what: str, name: str, rng: random.Random, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, WORKER, store.root, what, name, str(rng.randrange(2**31)), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def objects(store: Store) -> set[bytes]:
    return {bytes.fromhex(path.parent.name + path.name) for path in store.objects.glob("*/*")}


def test_what_must_be_alive_is_and_nothing_else(store: Store, rng: random.Random) -> None:
    workers = {name: start(store, "use", name, rng, SECONDS) for name in ("ada", "bob", "eve")}
    collectors = [start(store, "collect", f"collector{number}", rng, SECONDS) for number in range(2)]
    end = time.monotonic() + SECONDS
    killed = 0
    while (left := end - time.monotonic()) > 0.4:
        time.sleep(rng.uniform(0.05, 0.2))
        name = rng.choice(sorted(workers))
        if workers[name].poll() is None and rng.random() < 0.3:
            workers[name].kill()
            workers[name].communicate()
            killed += 1
            workers[name] = start(store, "use", name, rng, left)
    rounds: dict[str, int] = {}
    for process in [*workers.values(), *collectors]:
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        rounds[process.args[4]] = int(out)
    print(f"rounds: {rounds}; killed: {killed}")
    assert min(rounds[f"collector{number}"] for number in range(2)) >= 3, "collections get their turn"

    collect(store)
    trees, kept = alive(store.records(), store)
    assert {path.name for path in (store.root / "trees").iterdir()} == trees
    assert objects(store) == kept
    assert [*(store.root / "incoming").iterdir(), *(store.root / "leases").iterdir()] == []
    for digest in kept:
        store.read(digest)
