"""One server on one state directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from farcall.errors import ConflictError
from farcall.state import StateStore

from .conftest import Store

OPEN = "import sys; from pathlib import Path; from farcall.state import StateStore; StateStore(Path(sys.argv[1]))"


def test_a_second_server_is_told_who_has_it_and_what_to_do(store: Store) -> None:
    with pytest.raises(ConflictError) as raised:
        StateStore(store.directory)
    message = str(raised.value)
    assert str(os.getpid()) in message
    assert str(store.directory) in message
    assert "farcall server stop" in message
    second = subprocess.run([sys.executable, "-c", OPEN, str(store.directory)], capture_output=True, text=True)
    assert f"ConflictError: another farcall server (pid {os.getpid()})" in second.stderr
    store.spawn("fc-1", b"")  # the first one goes on


def test_the_lock_goes_with_its_holder(store: Store, tmp_path: Path) -> None:
    directory = tmp_path / "other"
    hold = OPEN + "; print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(ConflictError, match=str(process.pid)):
        StateStore(directory)
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    other = StateStore(directory)
    store.run(other.close())
