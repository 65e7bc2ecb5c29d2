"""The disk under the state directory is full: what needs it says so, and nothing acknowledged is lost."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import farcall
from farcall.sdk import client
from tests.conftest import Installation

MEBIBYTES = 24


@pytest.fixture
def small_disk(installation: Installation) -> Iterator[Path]:
    """The installation's state directory, on a disk of its own."""
    state = Path(installation.environment["FARCALL_STATE_DIR"])
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={MEBIBYTES}m,mode=700", "farcall-test", str(state)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield state
    finally:
        installation.farcall("server", "stop", "--force", check=False)
        subprocess.run(["umount", "--lazy", str(state)], check=True)


@pytest.fixture
def programs(small_disk: Path, installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The app of the fault tests, run by this process."""
    for name, value in installation.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    monkeypatch.setattr(client, "_current", None)  # another test's server is not to be used
    sys.modules.pop("programs", None)
    programs = importlib.import_module("programs")
    with programs.app.run():
        yield programs


def fill(directory: Path, but: int = 0) -> Path:
    """Takes all room there is, but so many bytes; also what becomes free meanwhile."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        while os.statvfs(directory).f_bavail:
            for size in (2**20, 2**12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    pass
        file.truncate(file.tell() - but)
    return filler


def test_an_app_stops_while_the_disk_is_busy(installation: Installation) -> None:
    """The end of a program waits for its containers, not for the disk."""
    program = installation.root / "busy.py"
    program.write_text(
        "import farcall, sqlite3, sys, time\n"
        "app = farcall.App('busy')\n"
        "@app.function()\n"
        "def double(x):\n"
        "    return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    with app.run():\n"
        "        assert double.remote(1) == 2\n"
        "        database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "        database.execute('BEGIN IMMEDIATE')  # no write of the server's ends from here on\n"
        "        before = time.monotonic()\n"
        "    print(time.monotonic() - before)\n"
        "    database.rollback()\n"
    )
    database = Path(installation.environment["FARCALL_STATE_DIR"]) / "state.db"
    done = subprocess.run(
        [sys.executable, str(program), str(database)],
        env=installation.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 20


@pytest.mark.root("mounts a small disk")
def test_a_full_disk_refuses_what_it_cannot_keep_and_loses_nothing(programs: Any, small_disk: Path) -> None:
    assert programs.plain.remote(1) == 2
    kept = [programs.plain.spawn(x) for x in range(20)]
    filler = fill(small_disk)

    with pytest.raises(farcall.errors.ResourceExhaustedError, match=str(small_disk)):
        for _ in range(1000):  # what the database has set aside is used up first
            kept.append(programs.plain.spawn(len(kept)))
    with pytest.raises(farcall.errors.ResourceExhaustedError, match=str(small_disk)):
        programs.size.spawn(bytes(4 * 2**20))

    # What needs no disk goes on, in the containers that run ...
    assert [programs.plain.remote(x) for x in range(20)] == list(range(1, 21))
    assert list(programs.plain.map(range(200))) == list(range(1, 201))
    # ... and in new ones.
    assert programs.square.remote(5) == 25

    filler.unlink()
    kept.append(programs.plain.spawn(len(kept)))
    assert [call.get(timeout=30) for call in kept] == [x + 1 for x in range(len(kept))]
    assert programs.size.spawn(bytes(2**20)).get(timeout=30) == 2**20


@pytest.mark.root("mounts a small disk")
def test_a_result_waits_until_there_is_room_for_it(programs: Any, small_disk: Path) -> None:
    """It was computed and cannot be recorded: it is kept, and recorded later."""
    assert programs.grow.remote(1) == b"\0"
    filler = fill(small_disk, but=2**20)
    call = programs.grow.spawn(4 * 2**20)
    with pytest.raises(TimeoutError):
        call.get(timeout=3)
    filler.unlink()
    assert call.get(timeout=30) == bytes(4 * 2**20)
