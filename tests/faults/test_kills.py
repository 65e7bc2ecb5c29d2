"""Runner, server (with its worker) and launcher are killed at random under load, and nothing acknowledged is lost.

Each spawned call gives its caller one result, each `.remote` a result or ConnectionLostError; in the end no process,
mount or cgroup stays behind.
"""

import importlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from farcall.launcher.process import LOCK_NAME
from tests.conftest import Installation, leftovers, snapshot
from tests.faults.faults import Faults
from tests.faults.load import Load, asked_again

ROUNDS = 50
LONG_ROUNDS = 1000
TARGETS = ("runner", "server", "launcher")


@pytest.fixture
def faults(installation: Installation) -> Faults:
    return Faults(installation.root)


@pytest.fixture
def app(faults: Faults, run_app: Callable[[str], Any]) -> Any:
    """The app, run by this process."""
    return run_app("mixed")


def run_rounds(app: Any, faults: Faults, rng: random.Random, rounds: int) -> None:
    load = Load(app, faults, rng, ["remote", "remote", "spawn", "spawn"])
    try:
        for _ in range(rounds):
            faults.kill(rng.choice(TARGETS))
            load.go_on(rng.randint(1, 12))
    finally:
        load.finish()
    load.check()
    assert all(faults.kills[target] for target in TARGETS), faults.kills


def test_nothing_acknowledged_is_lost(app: Any, faults: Faults, rng: random.Random) -> None:
    run_rounds(app, faults, rng, ROUNDS)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_nothing_acknowledged_is_lost_for_long(app: Any, faults: Faults, rng: random.Random) -> None:
    run_rounds(app, faults, rng, LONG_ROUNDS)


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
    deadline = time.monotonic() + 60
    while "0 apps, 0 containers" not in (status := installation.farcall("server", "status").stdout):
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    assert not leftovers(installation.root, snapshot(installation.root))


def test_a_container_that_is_killed_while_it_imports_is_replaced(faults: Faults, run_app: Callable[[str], Any]) -> None:
    """No input has started in it: whatever waits is run by another one."""
    programs = run_app("slow_import")
    call = programs.double.spawn(4)
    deadline = time.monotonic() + 60
    while not faults.kill("runner"):
        assert time.monotonic() < deadline, "no container is started"
        time.sleep(0.01)
    assert call.get(timeout=60) == 8


def test_the_loss_of_a_launcher_spends_no_retries(faults: Faults, run_app: Callable[[str], Any]) -> None:
    """`once` has none to spend: both its calls are run again, at once."""
    app = run_app("mixed")
    assert app.once.remote(2)[0] == 4  # a container is there
    while True:
        spawned, answers = app.once.spawn(3, 3.0), list[Any]()
        remote = threading.Thread(target=lambda mine=answers: mine.append(app.once.remote(4, 3.0)))
        remote.start()
        while (running := app.once.get_current_stats().num_running_inputs) < 2 and not answers:
            time.sleep(0.01)
        if running == 2:
            break
        remote.join()  # on a busy machine the one was over when the other began: once more
        spawned.get(timeout=60)
    assert faults.kill("launcher")
    assert spawned.get(timeout=60)[0] == 9
    remote.join()
    assert [answer[0] for answer in answers] == [16]


def test_spent_retries_stay_spent_after_a_restart(
    faults: Faults, run_app: Callable[[str], Any], installation: Installation
) -> None:
    """The first of two attempts has failed, and the other is due in a minute. The next server makes it at once, and no
    third one after another minute."""
    call = run_app("programs").fail.spawn("it")
    database = sqlite3.connect(f"file:{installation.root}/state/state.db?mode=ro", uri=True)
    with closing(database):
        deadline = time.monotonic() + 60
        while database.execute("SELECT attempts FROM inputs").fetchall() != [(1,)]:
            assert time.monotonic() < deadline, "the first attempt is not recorded"
            time.sleep(0.01)
    assert faults.kill("server")
    began = time.monotonic()
    with pytest.raises(ValueError, match="it"):
        asked_again(call.get, faults)
    assert time.monotonic() - began < 55
