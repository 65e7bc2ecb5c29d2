"""Everything at once: every way of calling, under random kills, on a disk that is full now and then.

`load.py` says what may come of a call. In the end all that was acknowledged is accounted for, all results are right,
and nothing is left behind. The seed is in the header of the test run; `pytest --seed=N` has the same kills again.
"""

import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import farcall
from tests.conftest import Installation
from tests.faults.faults import Faults
from tests.faults.load import PATIENCE, Load, asked_again, every_kind

DISK_MEBIBYTES = 256
SECONDS = 40.0
LONG_SECONDS = 600.0
TARGETS = ("runner", "init", "server", "launcher")
CALM = 0.15  # of what happens is that nothing does, until all has recovered
FULL = 0.1  # of it that the disk is full, with more of it meanwhile
AUDIT_SECONDS = 10.0


class Soak:
    """One run of it."""

    def __init__(self, installation: Installation, small_disk: Callable[..., Path], run_app: Callable[[str], Any]):
        disk = small_disk(DISK_MEBIBYTES)
        for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):  # of volumes and builds, too, there is only so much room
            installation.environment[name] = str(disk / name)
        self.installation = installation
        self.faults = Faults(installation.root, disk)
        self.app = run_app("mixed")

    def run(self, rng: random.Random, seconds: float) -> None:
        load = Load(self.app, self.faults, rng, list(every_kind()))
        try:
            runs = self._disturb(load, rng, seconds)
        finally:
            self.faults.free()
            load.finish()
        load.check()
        self._account(load, runs)

    def _disturb(self, load: Load, rng: random.Random, seconds: float) -> list[tuple[set[int], Counter[int]]]:
        """Does its worst. Returns what was settled now and then, and how often each number had run some time later."""
        began = audited = time.monotonic()
        settled: set[int] = set()
        runs: list[tuple[set[int], Counter[int]]] = []
        left = [self._fill, *(lambda load, rng, target=one: self._kill(load, rng, target) for one in TARGETS)]
        while not load.wrong and (left or time.monotonic() - began < seconds):
            chosen = rng.random()
            if left:
                left.pop(rng.randrange(len(left)))(load, rng)
            elif chosen < CALM:
                load.go_round()
            elif chosen < CALM + FULL:
                self._fill(load, rng)
            else:
                self._kill(load, rng, rng.choice(TARGETS))
            if time.monotonic() - audited > AUDIT_SECONDS:
                runs.append((settled, self._runs()))
                settled, audited = set(load.settled), time.monotonic()
        load.go_round()
        return runs

    def _fill(self, load: Load, rng: random.Random) -> None:
        """The disk is full, and more happens."""
        self.faults.fill()
        load.note("the disk is full")
        for _ in range(rng.randint(1, 4)):
            self._kill(load, rng, rng.choice(TARGETS), within=rng.uniform(0.1, 1.0))
        self.faults.free()
        load.note("there is room on the disk")

    def _kill(self, load: Load, rng: random.Random, target: str, within: float = PATIENCE) -> None:
        if self.faults.kill(target):
            load.note(f"killed a {target}")
        load.go_on(rng.randint(1, 30), within)  # the next one comes at some point of the recovery from this one

    def _runs(self) -> Counter[int]:
        """How often each number was run, as far as what the containers have said was kept."""
        lines = self.installation.farcall("logs", self.app.app.app_id, "--grep", "run ", timeout=PATIENCE).stdout
        return Counter(map(int, re.findall(r"run (\d+);", lines)))

    def _account(self, load: Load, runs: list[tuple[set[int], Counter[int]]]) -> None:
        """After yet another kill: everything that was acknowledged is there, once."""
        self.faults.kill("server")
        for one in load.acknowledged:
            for index in range(len(one.wanted)):
                load.fetch(one, index)
        volume = farcall.Volume.from_name("soak")
        names = {entry.path for entry in asked_again(lambda: volume.listdir("/"), self.faults)}
        missing = {number for number in load.kept if str(number) not in names}
        assert not missing, f"{missing} were committed to the volume and are not there"
        for number in load.kept:
            assert b"".join(volume.read_file(str(number))) == f"{number} ".encode() * 1000
        last = self._runs()
        assert last, "nothing is kept of what the containers said"
        for settled, earlier in runs:
            again = {number for number in settled if last[number] > earlier[number]}
            assert not again, f"{again} ran again after their results were recorded"
        assert not load.never_ran & last.keys(), "a call ran of which the caller was told that it had not"


@pytest.fixture
def soak(installation: Installation, small_disk: Callable[..., Path], run_app: Callable[[str], Any]) -> Soak:
    return Soak(installation, small_disk, run_app)


@pytest.mark.root("mounts a small disk")
@pytest.mark.timeout(900)
def test_every_acknowledged_call_is_accounted_for(soak: Soak, rng: random.Random) -> None:
    soak.run(rng, SECONDS)


@pytest.mark.long
@pytest.mark.root("mounts a small disk")
@pytest.mark.timeout(3600)
def test_every_acknowledged_call_is_accounted_for_for_long(soak: Soak, rng: random.Random) -> None:
    soak.run(rng, LONG_SECONDS)
