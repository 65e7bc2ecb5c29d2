"""A disk that fills up: who does not fit is told, everything acknowledged stays, and the store goes on."""

import resource
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from farcall.errors import ResourceExhaustedError
from farcall.state import StateStore

from .conftest import Store
from .test_store import LARGE

# Runs in a mount namespace of its own, with the whole of `sys.argv[1]` for a disk of 12 MiB.
ON_A_SMALL_DISK = """
import asyncio, os, sqlite3, sys
from pathlib import Path
from farcall.errors import ResourceExhaustedError
from farcall.state import App, Call, StateStore

disk = Path(sys.argv[1])
acknowledged = {}

async def spawn(store, call_id, size):
    payload = os.urandom(size)
    call = Call(call_id=call_id, app_id="ap-1", function_id="fu-1", function_name="f")
    try:
        await store.add_call(call, [payload])
    except ResourceExhaustedError as error:
        assert str(disk) in str(error) and "MiB free" in str(error), error
        return False
    acknowledged[call_id] = payload
    return True

def leave_free(size):
    with open(disk / "filler", "ab", buffering=0) as filler:
        while (free := os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize) > size:
            filler.write(bytes(min(free - size, 65536)))

async def main():
    store = StateStore(disk / "state")
    await store.add_app(App(app_id="ap-1", name="x"))
    assert await spawn(store, "fc-first", 2_000_000)

    # One payload for a row and one for a file that do not fit, among small ones that do.
    leave_free(600_000)
    sizes = [100, 900_000, 100, 3_000_000, 100, 100]
    fitted = await asyncio.gather(*(spawn(store, f"fc-mixed-{n}", size) for n, size in enumerate(sizes)))
    assert fitted == [True, False, True, False, True, True], fitted
    assert len(os.listdir(disk / "state" / "payloads")) == 1

    # No room at all, at some point; then it says so each time, and reading goes on.
    leave_free(0)
    count = 0
    while await spawn(store, f"fc-fill-{count}", 3000):
        count += 1
        assert count < 10_000
    assert not any([await spawn(store, f"fc-full-{n}", 10_000) for n in range(20)])
    assert await store.input_payload("fc-first", 0) == acknowledged["fc-first"]

    os.unlink(disk / "filler")
    assert await spawn(store, "fc-again", 200_000)
    assert await store.record_output("fc-first", 0, 0, b"result")
    del acknowledged["fc-first"]

    # The same from the start: a server that starts on a full disk.
    leave_free(0)
    await store.close()
    try:
        store = StateStore(disk / "state")
    except ResourceExhaustedError:
        os.unlink(disk / "filler")
        store = StateStore(disk / "state")
    for call_id, payload in acknowledged.items():
        assert await store.input_payload(call_id, 0) == payload, call_id
    assert {call.call_id async for call in store.pending_calls()} == set(acknowledged)
    await store.close()
    with sqlite3.connect(disk / "state" / "state.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    print("held")

asyncio.run(main())
"""


def test_a_small_disk(tmp_path: Path) -> None:
    in_namespaces = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=12m tmpfs {tmp_path}"
    if subprocess.run([*in_namespaces, "sh", "-c", mount], capture_output=True).returncode != 0:
        pytest.skip("needs a user namespace that may mount a tmpfs")
    script = f'{mount} && exec "$@"'
    command = [sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)]
    found = subprocess.run([*in_namespaces, "sh", "-c", script, "sh", *command], capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("held\n", "")


@contextmanager
def file_size_limit(size: int) -> Generator[None]:
    """No file of this process may grow beyond `size` bytes: what a quota does, with EFBIG instead of EDQUOT."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_limit_on_file_sizes(store: Store) -> None:
    with file_size_limit(300_000):
        for payload in (LARGE, b"x" * 900_000):
            with pytest.raises(ResourceExhaustedError, match="free"):
                store.spawn("fc-large", payload)
        store.spawn("fc-small", b"small")
    store.spawn("fc-large", LARGE)
    store.reopen()
    assert store.pending() == {"fc-small": [0], "fc-large": [0]}
    assert store.payload_files() == 1
    assert store.state.statistics().swept_files == 0


def test_no_room_for_a_new_store(tmp_path: Path) -> None:
    with file_size_limit(0), pytest.raises(ResourceExhaustedError, match=str(tmp_path)):
        StateStore(tmp_path / "state")
    StateStore(tmp_path / "state")
