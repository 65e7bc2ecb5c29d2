"""The disk under the state directory is full: what needs it says so, and nothing acknowledged is lost."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import farcall
from tests.conftest import Installation
from tests.faults.faults import Faults


@pytest.fixture
def disk(small_disk: Callable[..., Path]) -> Path:
    return small_disk(24)


@pytest.fixture
def programs(disk: Path, run_app: Callable[[str], Any]) -> Any:
    """The app of the fault tests, run by this process."""
    return run_app("programs")


@pytest.fixture
def faults(installation: Installation, disk: Path) -> Faults:
    return Faults(installation.root, disk)


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
def test_a_full_disk_refuses_what_it_cannot_keep_and_loses_nothing(programs: Any, faults: Faults, disk: Path) -> None:
    assert programs.plain.remote(1) == 2
    kept = [programs.plain.spawn(x) for x in range(20)]
    faults.fill()

    with pytest.raises(farcall.errors.ResourceExhaustedError, match=str(disk)):
        for _ in range(1000):  # what the database has set aside is used up first
            kept.append(programs.plain.spawn(len(kept)))
    with pytest.raises(farcall.errors.ResourceExhaustedError, match=str(disk)):
        programs.size.spawn(bytes(4 * 2**20))

    # What needs no disk goes on, in the containers that run ...
    assert [programs.plain.remote(x) for x in range(20)] == list(range(1, 21))
    assert list(programs.plain.map(range(200))) == list(range(1, 201))
    # ... and in new ones.
    assert programs.square.remote(5) == 25

    faults.free()
    kept.append(programs.plain.spawn(len(kept)))
    assert [call.get(timeout=30) for call in kept] == [x + 1 for x in range(len(kept))]
    assert programs.size.spawn(bytes(2**20)).get(timeout=30) == 2**20


@pytest.mark.root("mounts a small disk")
def test_a_result_waits_until_there_is_room_for_it(programs: Any, faults: Faults) -> None:
    """It was computed and cannot be recorded: it is kept, and recorded later."""
    assert programs.grow.remote(1) == b"\0"
    faults.fill(but=2**20)
    call = programs.grow.spawn(4 * 2**20)
    with pytest.raises(TimeoutError):
        call.get(timeout=1)
    faults.free()
    assert call.get(timeout=30) == bytes(4 * 2**20)


@pytest.mark.root("mounts a small disk")
def test_spawned_inputs_wait_where_there_is_no_room_for_a_container(
    small_disk: Callable[..., Path], run_app: Callable[[str], Any], installation: Installation
) -> None:
    """The disk of the containers is full before there was any: nothing has been made ahead."""
    faults = Faults(installation.root, small_disk(4, under="launcher"))
    programs = run_app("programs")
    faults.fill()
    with pytest.raises(farcall.errors.ResourceExhaustedError, match=r"\(0\.0 MiB free under .*free some space"):
        programs.plain.remote(1)
    call = programs.plain.spawn(2)
    with pytest.raises(TimeoutError):
        call.get(timeout=1)
    faults.free()
    assert call.get(timeout=30) == 3
    assert programs.plain.remote(1) == 2
