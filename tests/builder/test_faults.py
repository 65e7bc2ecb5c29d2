"""Builds whose server is killed, or whose disk fills up: finished steps stay, and nothing else does."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Installation, descendants

Write = Callable[..., Path]
MEBIBYTES = 48


@pytest.fixture
def write(installation: Installation, programs: Path) -> Write:
    """Writes a program whose image is that of the programs with these commands."""

    def write(*commands: str, more: str = "") -> Path:
        file = installation.root / "program.py"
        file.write_text(
            f"import farcall\nimage = farcall.Image.from_scratch().add_local_dir({str(programs)!r}, '/', copy=True)\n"
            f"image = image.run_commands(*{commands!r}){more}\n"
            "if __name__ == '__main__':\n    with farcall.enable_output():\n        print(image.build().object_id)\n"
        )
        return file

    return write


def server(installation: Installation) -> int:
    """The pid of the server."""
    pids = [pid for pid, command in descendants().items() if "farcall.server" in command and "launcher" not in command]
    mine = str(installation.root).encode()
    [found] = [pid for pid in pids if mine in Path(f"/proc/{pid}/environ").read_bytes()]
    return found


def in_progress(installation: Installation) -> list[str]:
    """What of the content store belongs to work that is not over, after a collection."""
    installation.farcall("content", "gc")
    incoming = Path(installation.environment["XDG_DATA_HOME"], "farcall/content/local/incoming")
    return sorted(name for name in os.listdir(incoming) if name.startswith(("step-", "build-")))


def test_a_server_killed_in_a_build(installation: Installation, write: Write, tmp_path: Path) -> None:
    first = f"cat /proc/sys/kernel/random/uuid > /first; echo {tmp_path.name}"
    program = write(first, "echo half > /half; echo waiting; sleep 300")
    process, shown = installation.start("python", program, until="waiting")
    assert tmp_path.name in shown
    os.kill(server(installation), signal.SIGKILL)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "Traceback" not in rest
    again = installation.farcall("python", write(first, "cat /half; ls /first"))
    assert again.stdout.startswith("im-")
    assert f"RUN {first}"[:40] not in again.stderr
    assert "\n/first\n" in again.stderr
    assert "half: No such file" in again.stderr
    assert in_progress(installation) == []


def chrooted(installation: Installation) -> list[int]:
    """The processes of a Debian that is being made, in it."""
    found: list[int] = []
    for pid in descendants():
        with contextlib.suppress(OSError):
            root = os.readlink(f"/proc/{pid}/root")
            if root.startswith(str(installation.root)) and "mmdebstrap." in root:
                found.append(pid)
    return found


@pytest.mark.long
def test_a_bootstrap_that_is_killed(installation: Installation) -> None:
    program = installation.root / "program.py"
    program.write_text("import farcall\nif __name__ == '__main__':\n    farcall.Image.debian_slim().build()\n")
    installation.environment["XDG_DATA_HOME"] = str(installation.root / "data")  # where nothing is built yet
    process = subprocess.Popen(
        [sys.executable, "-m", "farcall", "python", program],
        env=installation.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not (inside := chrooted(installation)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    makers = [pid for pid, command in descendants().items() if "mmdebstrap" in command]
    assert makers
    for pid in (*makers, *inside):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "mmdebstrap ended" in shown
    assert str(installation.root) not in Path("/proc/self/mounts").read_text()
    assert in_progress(installation) == []


@pytest.fixture
def small_disk(installation: Installation) -> Iterator[Path]:
    """All that the installation writes is on a small disk."""
    disk = installation.root / "disk"
    disk.mkdir()
    options = f"size={MEBIBYTES}m,mode=700"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "farcall-test", disk], check=False).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here")
    names = ("FARCALL_STATE_DIR", "XDG_DATA_HOME", "XDG_CACHE_HOME")
    installation.environment |= {name: str(disk / name.lower()) for name in names}
    try:
        yield disk
    finally:
        installation.farcall("server", "stop", "--force", check=False)
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_that_fills_up_in_a_build(
    installation: Installation, write: Write, small_disk: Path, tmp_path: Path
) -> None:
    first = "echo first > /first"
    failed = installation.farcall("python", write(first, "seq 1 99999999 > /large"), check=False)
    assert failed.returncode == 1
    assert failed.stderr.endswith("seq: write error: No space left on device\n")
    assert in_progress(installation) == []
    large = tmp_path / "large"
    large.write_bytes(os.urandom(MEBIBYTES << 20))
    copied = write(first, more=f".add_local_file({str(large)!r}, '/large', copy=True)")
    failed = installation.farcall("python", copied, check=False)
    assert failed.returncode == 3
    last = failed.stderr.splitlines()[-1]
    assert "No space left" in last or "free" in last
    done = installation.farcall("python", write(first, "cat /first"))
    assert "\nfirst\n" in done.stderr
    assert f"RUN {first}" not in done.stderr  # it was done before the disk was full
    assert in_progress(installation) == []
    installation.farcall("content", "verify")
