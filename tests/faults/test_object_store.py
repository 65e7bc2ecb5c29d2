"""The object store of an image is killed while the image is read: an error for who reads, and nobody else notices."""

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Installation, running_server, short_directory
from tests.content.tiers.seaweedfs import KEYS, SeaweedFS

pytestmark = [
    pytest.mark.root("it mounts file systems"),
    pytest.mark.kernel("erofs", "images are mounted with it"),
    pytest.mark.long,
]

BUILD_SECONDS = 500

PROGRAM = """
import hashlib, threading, time
import farcall

app = farcall.App("far")
image = farcall.Image.debian_slim().run_commands("head -c 160000000 /dev/urandom >/large", "seq 100 >/small")


@app.function(image=image, max_containers=1)
def work(x):
    time.sleep(0.02)
    return x


@app.function(image=image, max_containers=1)
def digest(pause):
    found = hashlib.sha256()
    with open("/large", "rb", buffering=0) as file:
        while part := file.read(1 << 20):
            found.update(part)
            print("read", file.tell() >> 20)
            time.sleep(pause)
    return found.hexdigest()


@app.function(image=image, max_containers=1)
def small():
    return sum(map(int, open("/small")))


def mapped():
    assert list(work.map(range(1000))) == list(range(1000))
    print("mapped", flush=True)


@app.local_entrypoint()
def main(pause: float = 0.0):
    if not pause:
        print(small.remote(), "of", digest.remote(0))
        return
    list(work.map(range(20)))
    mapping = threading.Thread(target=mapped)
    mapping.start()
    try:
        digest.remote(pause)
    except OSError as error:
        print("error", error.errno, flush=True)
    mapping.join()
    input("waiting\\n")
    print(small.remote(), "of", digest.remote(0))
"""


@pytest.fixture
def seaweedfs(tmp_path: Path) -> Iterator[SeaweedFS]:
    made = SeaweedFS(tmp_path / "s3")
    made.start()
    yield made
    made.remove()


def read_until(running: subprocess.Popen[str], wanted: str) -> list[str]:
    """The lines that a program prints, to this one."""
    assert running.stdout is not None and running.stderr is not None
    lines: list[str] = []
    while wanted not in lines:
        line = running.stdout.readline()
        assert line, f"it ended before it said {wanted!r}: {lines[-5:]}\n{running.stderr.read()}"
        lines.append(line.rstrip("\n"))
    return lines


@pytest.mark.timeout(BUILD_SECONDS + 300)
def test_an_object_store_that_is_killed_while_an_image_is_read(tmp_path: Path, seaweedfs: SeaweedFS) -> None:
    settings = {"FARCALL_OBJECT_STORE": "s3://far/images", "FARCALL_OBJECT_STORE_ENDPOINT": seaweedfs.endpoint} | KEYS
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with short_directory() as one, short_directory() as other:
        builder = Installation.under(one, one)
        builder.environment |= settings
        try:
            built = builder.farcall("run", program, timeout=BUILD_SECONDS).stdout.splitlines()[-1]
            builder.farcall("content", "push", timeout=BUILD_SECONDS)
        finally:
            builder.farcall("server", "stop", "--force")
        with running_server(other, other, **settings) as machine:
            try:
                command = [sys.executable, "-m", "farcall", "run", "--quiet", str(program), "--pause", "0.1"]
                pipe = subprocess.PIPE
                running = subprocess.Popen(
                    command, env=machine.environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
                )
                read_until(running, "read 8")
                seaweedfs.kill()
                lines = read_until(running, "waiting")
                assert f"error {errno.EIO}" in lines, "who reads on hears of it"
                assert "mapped" in lines, "calls that need nothing more go on"
                log = other / "state" / "launcher" / "launcher.log"
                [said] = [line for line in log.read_text().splitlines() if "cannot be fetched" in line]
                assert "/large" in said and seaweedfs.endpoint in said and "s3://far/images" in said
                seaweedfs.start()
                out, err = running.communicate("\n", timeout=200)
                assert running.returncode == 0, err
                assert out.splitlines()[-1] == built, "and now all of it is read, and right"
                assert sum("fetched again" in line for line in log.read_text().splitlines()) == 1
            finally:
                seaweedfs.kill()
