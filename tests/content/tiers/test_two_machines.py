"""Two installations that share an object store: what one builds, the other runs without building it."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import Installation, running_server, short_directory
from tests.content.tiers.seaweedfs import KEYS, SeaweedFS

PROGRAM = """
import farcall

app = farcall.App("shared")
image = farcall.Image.debian_slim().run_commands("seq 3000000 >/numbers", "echo made here >/where")


@app.function(image=image)
def look() -> str:
    return open("/where").read().strip() + " " + open("/numbers").read(5).replace("\\n", ",")


@app.local_entrypoint()
def main():
    print(look.remote())
"""
SHARED_SECONDS = 100.0


def _unshared(installation: Installation) -> int:
    return json.loads(installation.farcall("content", "stat", "--json").stdout)["unshared"]


def _wait_until_shared(installation: Installation) -> None:
    deadline = time.monotonic() + SHARED_SECONDS
    while _unshared(installation):
        if time.monotonic() > deadline:
            log = (installation.root / "state" / "server.log").read_text()
            pytest.fail(f"what was built does not get into the object store; the server's log:\n{log[-3000:]}")
        time.sleep(0.2)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_one_builds_the_other_runs(tmp_path: Path) -> None:
    seaweedfs = SeaweedFS(tmp_path / "s3")
    seaweedfs.start()
    settings = {"FARCALL_OBJECT_STORE": "s3://shared/images", "FARCALL_OBJECT_STORE_ENDPOINT": seaweedfs.endpoint}
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    try:
        with short_directory() as one, short_directory() as other:
            first = Installation.under(one, one)
            first.environment |= settings | KEYS
            built = first.farcall("run", program, timeout=400)
            assert built.stdout == "made here 1,2,3\n"
            # The server dies while it pushes, or before, or after: the next one goes on with it.
            status = json.loads(first.farcall("server", "status", "--json").stdout)
            os.kill(status["pid"], signal.SIGKILL)
            first.farcall("server", "start")
            _wait_until_shared(first)
            assert first.farcall("content", "push").stdout.startswith("0 records pushed")
            first.farcall("server", "stop", "--force")

            with running_server(other, other, **settings, **KEYS) as second:
                ran = second.farcall("run", program, timeout=300)
                assert ran.stdout == "made here 1,2,3\n"
                assert "step 1 of" not in ran.stderr, "nothing is built"
                [image] = json.loads(second.farcall("image", "list", "--json").stdout)
                second.farcall("content", "pull", image["id"], timeout=300)
                assert second.farcall("content", "verify").stdout
                assert json.loads(second.farcall("content", "stat", "--json").stdout)["partial_trees"] == 0
                _wait_until_shared(second)
    finally:
        seaweedfs.remove()
