"""A worker whose disk is full, beside one with room and alone: nobody waits for ever, nothing is lost, and it heals."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.machines import WITHIN, Cluster, cluster
from tests.cluster.work import until
from tests.conftest import leftovers, short_directory, snapshot

pytestmark = [pytest.mark.root("mounts a small disk"), pytest.mark.long]

DISK = 96 << 20  # bytes of the first worker's disk, on which is all that it has
LARGE = 40 << 20  # bytes of a volume

PROGRAM = """
import hashlib, os, sys, time
import farcall

app = farcall.App("weights")
ARGUMENTS = dict(volumes={"/weights": farcall.Volume.from_name("NAME")}, cpu=2.0)


@app.function(**ARGUMENTS)
def digest():
    return hashlib.sha256(open("/weights/large", "rb").read()).hexdigest()


@app.function(**ARGUMENTS, max_containers=2)
def check(x):
    time.sleep(0.05)
    assert os.path.getsize("/weights/large") == SIZE
    return x


@app.function(max_containers=1)
def write(size):
    with open("/root/made", "wb", buffering=0) as file:
        try:
            while file.tell() < size:
                file.write(bytes(1 << 20))
        finally:
            os.unlink("/root/made")
    return size


@app.local_entrypoint()
def main(what: str):
    if what == "map":
        print(sorted(check.map(range(100), order_outputs=False)) == list(range(100)))
    elif what == "later":
        kept = digest.spawn()
        try:
            digest.remote()
        except farcall.errors.ResourceExhaustedError as error:
            print(error, flush=True)
        input()
        print(kept.get(timeout=60), digest.remote())
    elif what == "write":
        print(write.remote(1), flush=True)
        input()
        try:
            write.remote(200 << 20)
        except OSError as error:
            print(error, flush=True)
        print(write.remote(1))
    else:
        print(digest.remote())
"""


class Weights:
    """A volume with a large file, and a program that has uses for it."""

    def __init__(self, made: Cluster, name: str) -> None:
        folder = made.server.root
        data = os.urandom(LARGE)
        (folder / "large").write_bytes(data)
        made.server.farcall("volume", "create", name)
        made.server.farcall("volume", "put", name, folder / "large", "/large")
        self.made = made
        self.program = folder / f"{name}.py"
        self.program.write_text(PROGRAM.replace("NAME", name).replace("SIZE", str(LARGE)))

    def run(self, what: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.made.server.farcall("run", self.program, "--what", what, check=check)

    def begin(self, what: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "farcall", "run", "--quiet", str(self.program), "--what", what]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, env=self.made.server.environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )


class Filler:
    """Takes what room there is on a disk."""

    def __init__(self, disk: Path) -> None:
        self._file = disk / "filler"

    def fill(self, but: int = 0) -> None:
        with self._file.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))
            file.truncate(max(0, file.tell() - but))

    def free(self) -> None:
        self._file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def made(shared: Path) -> Iterator[Cluster]:
    """Two workers, of which the first has all its files on a small disk."""
    with short_directory() as root:
        before = snapshot(root)
        disk = root / "w1"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "farcall-test", disk], check=True)
        try:
            with cluster(root, shared, has_lines=False) as made:
                yield made
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)
        if left := leftovers(root, before):
            pytest.fail("stayed behind after the workers:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def filler(made: Cluster) -> Iterator[Filler]:
    filler = Filler(made.workers[0].place.root)
    yield filler
    filler.free()
    made.workers[0].place.farcall("content", "gc", "--keep", "0")


@pytest.fixture
def alone(made: Cluster) -> Iterator[None]:
    """The first worker has to do it."""
    made.server.farcall("worker", "drain", "w2")
    yield
    made.server.farcall("worker", "drain", "w2", "--undo")


def test_what_a_full_worker_has_no_room_for_runs_on_the_other(made: Cluster, filler: Filler) -> None:
    weights = Weights(made, "elsewhere")
    filler.fill(but=8 << 20)
    ran = weights.run("map")
    assert ran.stdout.splitlines()[-1] == "True"
    said = [line for line in ran.stderr.splitlines() if "has no room" in line]
    assert len(said) == 1, ran.stderr
    assert "worker w1 has no room for the files of check: 40.0 MiB" in said[0]
    assert str(made.workers[0].place.root) in said[0] and "Free some space there" in said[0]


def test_where_no_worker_has_room_the_call_says_so_and_what_is_kept_waits(
    made: Cluster, filler: Filler, alone: None
) -> None:
    weights = Weights(made, "later")
    filler.fill(but=8 << 20)
    running = weights.begin("later")
    assert running.stdout is not None
    said = running.stdout.readline()
    assert said.startswith("worker w1 has no room for the files of digest: 40.0 MiB"), said
    assert "MiB are free" in said and "Free some space there" in said
    filler.free()
    out, err = running.communicate("\n", timeout=WITHIN + 60)
    assert running.returncode == 0, err
    assert len(set(out.split())) == 1 and len(out.split()) == 2


def test_what_was_used_least_recently_makes_way(made: Cluster, filler: Filler, alone: None) -> None:
    one, other = Weights(made, "one"), Weights(made, "other")
    store = made.workers[0].place

    def held() -> int:
        return json.loads(store.farcall("content", "stat", "--json").stdout)["object_bytes"] // LARGE

    assert held() == 0
    one.run("digest")
    assert held() == 1
    filler.fill(but=20 << 20)
    other.run("digest")
    assert held() == 1
    one.run("digest")
    assert held() == 1


def test_a_container_that_fills_the_disk_hears_of_it_and_goes_on(made: Cluster, filler: Filler, alone: None) -> None:
    weights = Weights(made, "writes")
    running = weights.begin("write")
    assert running.stdout is not None
    assert running.stdout.readline() == "1\n"
    filler.fill(but=4 << 20)
    out, err = running.communicate("\n", timeout=WITHIN)
    assert running.returncode == 0, err
    assert out.splitlines() == ["[Errno 28] No space left on device", "1"]


def test_a_worker_whose_disk_was_full_has_containers_again(made: Cluster, filler: Filler, alone: None) -> None:
    """Not one byte is left, also for what farcall itself writes there."""
    weights = Weights(made, "again")
    filler.fill()
    failed = weights.run("digest", check=False)
    assert failed.returncode != 0
    assert "worker w1" in failed.stderr and "Traceback" not in failed.stderr, failed.stderr
    filler.free()
    until(lambda: weights.run("digest", check=False).returncode == 0)
