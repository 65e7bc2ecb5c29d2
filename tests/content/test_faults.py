"""Killed at any point, a disk that fills up: nothing half-made is believed whole, and the store goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Adds in every way there is, in children of which each ends one system call later than the one before it, of those that
# change something; then looks at what that has left.
KILLED = r"""
import io, os, sys
from pathlib import Path
from farcall.content import Store, Tree
from farcall.content.gc import collect
from farcall.content.ingest import ingest_directory
from farcall.content.upper import ingest_upper
from farcall.content.verify import verify

os_write = os.write

def end_after(left):
    def counted(real):
        def call(*arguments, **named):
            nonlocal left
            left -= 1
            if left < 0:
                if real is os_write:  # half of it is written
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os._exit(9)
            return real(*arguments, **named)
        return call
    for name in ("open", "write", "rename", "unlink", "fchmod", "utime", "ftruncate", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))

def add(root, store, calls):
    (root / "source").mkdir()
    (root / "source" / "large").write_bytes(b"l" * 300_000)
    (root / "source" / "small").write_bytes(b"s" * 1000)
    (root / "upper").mkdir()
    (root / "upper" / "moved").write_bytes(b"m" * 200_000)
    end_after(calls)
    with store.lease("test") as lease:
        lease.add_bytes(b"bytes" * 100)
        lease.add_stream(io.BytesIO(b"stream" * 1000))
        tree = store.tree(ingest_directory(lease, root / "source"))
        store.put_record("images", "one", trees=[ingest_upper(lease, root / "upper", tree).id])

store = Store(Path(sys.argv[1]) / "store")
for calls in range(1000):
    root = Path(sys.argv[1]) / str(calls)
    root.mkdir()
    pid = os.fork()
    if pid == 0:
        add(root, store, calls)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 9), status
    assert verify(store).damaged == []
    collect(store)
    assert os.listdir(store.root / "incoming") == os.listdir(store.root / "leases") == []
    assert store.statistics().objects == (3 if store.record("images", "one") else 0)
    if status == 0:
        print(calls)
        break
"""

# Runs in a mount namespace of its own, with the whole of argv[1] for a disk of 12 MiB.
ON_A_SMALL_DISK = r"""
import io, os, sys
from pathlib import Path
from farcall.content import Store, Tree
from farcall.content.gc import collect
from farcall.content.ingest import ingest_directory
from farcall.content.layers import read_layer
from farcall.content.verify import verify
from farcall.errors import ResourceExhaustedError

disk = Path(sys.argv[1])
store = Store(disk / "store")
free = lambda: os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize

def fails(add):
    try:
        add()
    except ResourceExhaustedError as error:
        assert str(disk) in str(error) and "MiB free" in str(error) and "farcall content gc" in str(error), error
        return True
    return False

source = Path(sys.argv[2])
with store.lease("kept") as lease:
    small = store.tree(ingest_directory(lease, source / "small"))
    store.put_record("images", "small", trees=[small.id])
with store.lease("test") as lease:
    assert fails(lambda: ingest_directory(lease, source / "large"))
    assert fails(lambda: lease.add_stream(io.BytesIO(bytes(20_000_000))))
    assert fails(lambda: lease.add_file(source / "large" / "file"))
    assert fails(lambda: read_layer(lease, (source / "layer.tar").open("rb")))
    number = 0
    while not fails(lambda: lease.add_bytes(os.urandom(5000))):
        number += 1
    # Whatever the last bytes go into: a lease, a tree, a record, a directory.
    fillers = []
    while free() > 0 and len(fillers) < 100:
        fillers.append(disk / f"filler{len(fillers)}")
        try:
            fillers[-1].write_bytes(bytes(65536))
        except OSError:
            pass
    assert number > 100 and free() < 65536
    full = [fails(lambda: lease.add_bytes(os.urandom(100))), fails(lambda: store.lease("more").add_bytes(b"x" * 100)),
            fails(lambda: store.put_record("images", "two", trees=[small.id])), fails(lambda: lease.add_tree([])),
            fails(lambda: lease.keep_objects({os.urandom(32): 1 for _ in range(5000)}))]
    assert full == [True] * 5, full
    assert verify(store).damaged == []
    for filler in fillers:
        filler.unlink()
found = collect(store)
assert found.objects >= number and verify(store).damaged == []
assert {path.name for path in store.objects.glob("*/*")} == {one.digest.hex()[2:] for one in small if one.digest}
assert list((disk / "store" / "incoming").iterdir()) == []
with store.lease("again") as lease:
    lease.add_tree([])
    assert not fails(lambda: lease.add_bytes(os.urandom(5_000_000)))
print("held")
"""


def test_killed_at_any_point(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True, text=True)
    assert done.stderr == "" and int(done.stdout) > 20


def test_a_small_disk(tmp_path: Path) -> None:
    source, disk = tmp_path / "source", tmp_path / "disk"
    disk.mkdir()
    for name, size in {"small/file": 1000, "large/file": 20_000_000}.items():
        (source / name).parent.mkdir(parents=True)
        (source / name).write_bytes(os.urandom(size))
    subprocess.run(["tar", "-C", source / "large", "-cf", source / "layer.tar", "."], check=True)
    in_namespaces = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=12m tmpfs {disk}"
    if subprocess.run([*in_namespaces, "sh", "-c", mount], capture_output=True).returncode != 0:
        pytest.skip("needs a user namespace that may mount a tmpfs")
    command = [sys.executable, "-c", ON_A_SMALL_DISK, disk, source]
    found = subprocess.run(
        [*in_namespaces, "sh", "-c", f'{mount} && exec "$@"', "sh", *command], capture_output=True, text=True
    )
    assert found.stdout == "held\n", found.stderr
