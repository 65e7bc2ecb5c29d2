"""The server is killed in the middle of commits: a volume has the version before, or the one that was being made. And
the disk is small: what only versions have that nobody can reach any more takes no room from the next."""

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import farcall
from farcall.sdk import client
from tests.conftest import Installation
from tests.faults.test_server import server_pid

ROUNDS = 6

PROGRAM = """
import sys
import farcall

volume = farcall.Volume.from_name("faults", create_if_missing=True)
app = farcall.App("commits", volumes={"/vol": volume})

@app.function(env={"FARCALL_VOLUME_COMMIT_SECONDS": "3600"})
def write(number):
    for one in range(30):
        with open(f"/vol/{one}", "w") as file:
            file.write(f"{number} " + "x" * 20_000 * (one % 2))
    volume.commit()

if __name__ == "__main__":
    with app.run():
        for number in range(int(sys.argv[1]) + 1, 1_000_000):
            write.remote(number)
            print(number, flush=True)
"""

VERSIONS = """
import farcall
volume = farcall.Volume.from_name("faults")
entries = volume.listdir("/")
print(len(entries), *{next(volume.read_file(one.path)).split()[0].decode() for one in entries})
"""


def test_a_killed_server_leaves_whole_versions(installation: Installation, rng: random.Random) -> None:
    program = installation.root / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    number = 0
    for _ in range(ROUNDS):
        installation.farcall("server", "start")
        process = subprocess.Popen(
            [sys.executable, str(program), str(number)],
            env=installation.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        acknowledged = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.15))
        os.kill(server_pid(installation), signal.SIGKILL)
        process.kill()  # between two calls it would not notice, and go on with the next server
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        process.wait(timeout=60)
        process.stdout.close()
        shown = subprocess.run(
            [sys.executable, "-c", VERSIONS],
            env=installation.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.split()
        assert shown[0] == "30"
        assert len(shown) == 2, f"a mix of versions: {shown}"
        number = int(shown[1])
        assert number in (acknowledged, acknowledged + 1)


@pytest.mark.root("mounts a small disk")
def test_old_versions_fill_no_disk(
    small_disk: Callable[..., Path], installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(48)
    installation.environment["XDG_DATA_HOME"] = str(disk / "data")
    for variable, value in installation.environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(client, "_current", None)  # another test's server is not to be used
    volume = farcall.Volume.from_name("replaced", create_if_missing=True)
    for number in range(150):  # three times what there is room for
        with volume.batch_upload(force=True) as batch:
            batch.put_file(io.BytesIO(number.to_bytes(8, "big") * 2**17), "/file")
    assert b"".join(volume.read_file("file")) == (149).to_bytes(8, "big") * 2**17
    with farcall.Volume.ephemeral() as ephemeral, ephemeral.batch_upload() as batch:
        batch.put_file(io.BytesIO(os.urandom(20 * 2**20)), "/large")
    # Nobody asks for anything any more, and still it goes.
    deadline = time.monotonic() + 60
    while (used := shutil.disk_usage(disk).used) > 10 * 2**20:
        assert time.monotonic() < deadline, f"{used} bytes are in use"
        time.sleep(0.1)
