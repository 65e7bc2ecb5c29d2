"""Containers whose files arrive when they are opened: what they see of tiers that are slow, gone, or lie, and of the
death of whoever serves them."""

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from image_harness import make_image
from launcher_harness import Rig, eventually
from lazy_harness import FarImage, Pushed, program_that_needs, push, servers_of

from farcall.content import profiles
from farcall.content.gc import collect
from farcall.content.tiers.layout import BLOB_BYTES
from farcall.content.verify import verify
from farcall.spec.container import Interpreter

pytestmark = [
    pytest.mark.root("it mounts file systems"),
    pytest.mark.kernel("erofs", "trees are mounted with it"),
]

RESTRICT = Path(__file__).parent.parent / "hosts/restrict.py"
LARGE = 9 << 20  # bytes: of three pieces
SMALL = 48 << 20  # bytes of a disk

# Starts a container from a far image, and tells.
_WITHOUT = """
import json, sys
from pathlib import Path
import msgspec
from launcher_harness import Rig
from lazy_harness import FarImage, push
from farcall.spec.container import Interpreter
place, image, interpreter = sys.argv[1:]
rig = Rig(Path(place) / "state", msgspec.json.decode(interpreter, type=Interpreter))
try:
    far = FarImage(Path(place), push(Path(place) / "pushed", Path(image)), rig)
    answer = rig.wait(rig.client.prepare_tree(str(far.store.root), far.lease.id, far.tree))
    told = {"missing": len(far.store.missing(far.tree)), "mode": msgspec.to_builtins(answer.mode), "log": far.log}
    print(json.dumps(told | {"output": far.output("cat /etc/motd", answer.mount)}))
finally:
    rig.close()
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_image(tmp_path_factory.mktemp("images") / "root")
    (root / "large").write_bytes(os.urandom(LARGE))
    return root


@pytest.fixture(scope="module")
def pushed(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Pushed:
    return push(tmp_path_factory.mktemp("pushed"), image)


@pytest.fixture
def far(rig: Rig, pushed: Pushed, tmp_path: Path) -> Iterator[FarImage]:
    far = FarImage(tmp_path, pushed, rig)
    yield far
    far.close()


@pytest.fixture
def own_far(own_rig: Rig, pushed: Pushed, tmp_path: Path) -> Iterator[FarImage]:
    """With a launcher that may be killed."""
    far = FarImage(tmp_path, pushed, own_rig)
    yield far
    far.close()


def test_files_arrive_when_they_are_opened(far: FarImage) -> None:
    assert far.output("cat /etc/motd") == "from the image\n"
    assert far.is_here("etc/motd") and not far.is_here("large")
    with far.off():  # what is here needs no tier
        assert far.output("cat /etc/motd; cat /etc/motd") == "from the image\n" * 2
    assert not far.log


def test_once_all_are_here_nobody_serves_them(far: FarImage) -> None:
    assert far.mount().is_lazy
    far.output("for f in /bin/* /etc/* /large; do cat $f > /dev/null; done")
    missing = far.store.missing(far.tree)
    assert {os.path.dirname(entry.path) for entry in missing} <= {b"lib", b"lib64", b"usr/lib", b"lib/x86_64-linux-gnu"}
    for entry in missing:
        far.output(f"cat /{entry.path.decode()} > /dev/null")
    mount = far.mount()
    assert not mount.is_lazy
    os.kill(far.server(), signal.SIGKILL)
    assert far.output("cat /etc/motd", mount) == "from the image\n"


def test_a_large_file_is_read_while_it_arrives(far: FarImage, image: Path) -> None:
    content = (image / "large").read_bytes()
    first = hashlib.sha256(content[:BLOB_BYTES]).hexdigest()
    pieces, others = far.tier / "pieces", far.tier / "others"
    pieces.rename(others)
    (pieces / first[:2]).mkdir(parents=True)
    shutil.copy(others / first[:2] / first[2:], pieces / first[:2])
    assert far.output("read -r line < /large; stat -c %s /large") == f"{LARGE}\n"
    assert not far.is_here("large")
    shutil.rmtree(pieces)
    others.rename(pieces)
    far.output("cp /large /tmp/copy; cat /tmp/copy > /dev/null")
    assert far.is_here("large")
    assert far.store.read(far.digest("large")) == content


def test_a_tier_that_is_gone_is_an_error_for_who_reads_and_one_line_in_the_log(far: FarImage) -> None:
    far.output("cat /etc/passwd")  # the programs are here
    far.lose("etc/motd")
    far.lose("etc/group")
    with far.off():
        result = far.start("cat /etc/motd; cat /etc/group; cat /etc/motd").result()
    assert result.output.count("Input/output error") == 3
    assert far.log.count("\n") == 1
    assert "/etc/" in far.log and str(far.tier) in far.log
    assert far.output("cat /etc/motd") == "from the image\n"
    eventually(lambda: "fetched again" in far.log, "the end of it in the log")
    assert far.log.count("\n") == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The disk of the store of `far_on_small_disk`: a real one, since EROFS is mounted from files there."""
    disk, file = tmp_path / "small" / "store", tmp_path / "disk"
    disk.mkdir(parents=True)
    with file.open("wb") as stream:
        stream.truncate(SMALL)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", file], check=True)
    if subprocess.run(["mount", "-o", "loop", file, disk], check=False).returncode != 0:
        pytest.skip("a file cannot be mounted as a disk here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def far_on_small_disk(rig: Rig, pushed: Pushed, small_disk: Path) -> Iterator[FarImage]:
    far = FarImage(small_disk.parent, pushed, rig)
    yield far
    far.close()


def fill(disk: Path) -> Path:
    """Takes all room on a disk; the file that has it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


def test_a_full_disk_is_an_error_for_who_reads_until_there_is_room(
    far_on_small_disk: FarImage, small_disk: Path
) -> None:
    far = far_on_small_disk
    far.output("cat /etc/motd")  # the programs are here
    filler = fill(small_disk)
    result = far.start("cat /large; cat /large; cat /etc/motd").result()
    assert result.output.count("No space left on device") == 2
    assert "from the image" in result.output, "what is here can be read"
    assert far.log.count("\n") == 1, far.log
    assert far.log.startswith("farcall: /large") and str(small_disk) in far.log and "0.0 MiB are free" in far.log
    filler.unlink()
    far.output("cat /large > /dev/null")
    eventually(lambda: "fetched again" in far.log, "the end of it in the log")


def test_a_lack_of_descriptors_is_no_full_disk(far: FarImage) -> None:
    """It is the server's, not the reader's; nothing in the store makes way for it."""
    far.output("cat /etc/passwd")  # the programs are here
    far.lose("etc/motd")
    with far.store.lease("test") as lease:
        old = lease.add_bytes(os.urandom(1 << 20))
    running = far.start("go; cat /etc/motd; go; cat /etc/motd")
    server = far.server()
    limits = resource.prlimit(server, resource.RLIMIT_NOFILE)
    resource.prlimit(server, resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        far.go()
        eventually(lambda: far.log, "a line in the log")
    finally:
        resource.prlimit(server, resource.RLIMIT_NOFILE, limits)
    assert far.log.count("\n") == 1 and "Too many open files" in far.log and "input/output error" in far.log, far.log
    far.go()
    assert running.result().output == "cat: /etc/motd: Input/output error\nfrom the image\n"
    assert far.store.has(old)


def test_on_a_full_disk_what_nobody_keeps_makes_way(far_on_small_disk: FarImage, small_disk: Path) -> None:
    far = far_on_small_disk
    far.output("cat /etc/motd")
    with far.store.lease("test") as lease:
        old = lease.add_bytes(os.urandom(16 << 20))
    fill(small_disk)
    far.output("cat /large > /dev/null")
    assert not far.store.has(old)
    assert far.is_here("etc/motd") and not far.log


def test_what_lies_is_not_shown(far: FarImage) -> None:
    far.output("cat /etc/passwd")
    far.lose("etc/motd")
    for path in (far.tier / "packs").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\0" + b"wrong" * 1000)
    result = far.start("cat /etc/motd").result()
    assert "Input/output error" in result.output and "wrong" not in result.output
    assert "cannot be had" in far.log


def test_who_waits_goes_on_when_the_server_dies(far: FarImage) -> None:
    far.output("cat /etc/passwd")
    far.lose("etc/motd")
    first = far.server()
    with far.hanging() as hanging:
        running = far.start("cat /etc/motd")
        eventually(lambda: hanging.asked() > 0, "the tier is asked")
        os.kill(first, signal.SIGKILL)
        eventually(lambda: first not in servers_of(far.store.root), "its end")
        hanging.again()
        eventually(lambda: servers_of(far.store.root) != [], "another server")
    result = running.result()
    assert (result.exited.exit_code, result.output) == (0, "from the image\n")


def test_a_container_that_waits_can_be_killed(far: FarImage) -> None:
    far.output("cat /etc/passwd")
    far.lose("etc/motd")
    with far.hanging() as hanging:
        running = far.start("cat /etc/motd")
        eventually(lambda: hanging.asked() > 0, "the tier is asked")
        far.rig.wait(far.rig.client.kill(running.id))
        assert running.result().exited.signal == signal.SIGKILL
    # It arrives for others.
    assert far.output("cat /etc/motd") == "from the image\n"


def test_a_server_that_dies_again_and_again_is_given_up(far: FarImage) -> None:
    far.output("cat /etc/passwd")
    far.lose("etc/motd")
    mount = far.mount()
    with far.hanging() as hanging:
        running = far.start("cat /etc/motd", mount)
        eventually(lambda: hanging.asked() > 0, "the tier is asked")

        def kill() -> bool:
            for pid in servers_of(far.store.root):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return "died 5 times" in far.log

        eventually(kill, "the launcher gives up")
        assert running.result().exited.exit_code == 1
    assert far.output("cat /etc/motd") == "from the image\n"


def test_a_server_that_cannot_be_started_again_is_given_up(far: FarImage) -> None:
    """The launcher has no descriptor left. Who waits gets an error, and not to wait for ever."""
    far.output("cat /etc/passwd")
    far.lose("etc/motd")
    launcher = far.rig.client.launcher_pid
    limits = resource.prlimit(launcher, resource.RLIMIT_NOFILE)
    with far.hanging() as hanging:
        running = far.start("cat /etc/motd; exit 7")
        eventually(lambda: hanging.asked() > 0, "the tier is asked")
        resource.prlimit(launcher, resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            os.kill(far.server(), signal.SIGKILL)
            eventually(lambda: "cannot be served" in far.log, "the launcher gives up")
        finally:
            resource.prlimit(launcher, resource.RLIMIT_NOFILE, limits)
        assert running.result().exited.exit_code == 7
    assert far.output("cat /etc/motd") == "from the image\n"


def test_files_that_are_open_stay_open_when_the_server_dies(far: FarImage) -> None:
    """Past it, and through it."""
    script = "exec 3< /large 4< /etc/motd; cat /etc/group > /dev/null; echo open; go; cat <&4; cat <&3 > /tmp/copy; "
    running = far.start(script + "cat /etc/motd /large > /dev/null")
    running.read_line()
    os.kill(far.server(), signal.SIGKILL)
    far.go()
    result = running.result()
    assert (result.exited.exit_code, result.output) == (0, "from the image\n")


def test_a_launcher_that_is_killed_leaves_nothing(own_far: FarImage) -> None:
    own_far.output("cat /etc/motd")
    server = own_far.server()
    os.kill(own_far.rig.client.launcher_pid, signal.SIGKILL)
    own_far.rig.wait(own_far.rig.loss())
    own_far.rig.lost = False
    own_far.rig.connect()
    eventually(lambda: server not in servers_of(own_far.store.root), "the end of its server")
    assert not [line for line in Path("/proc/mounts").read_text().split("\n") if str(own_far.rig.state) in line]
    assert own_far.output("cat /etc/motd /etc/group > /dev/null; cat /etc/motd") == "from the image\n"


def test_what_a_start_opened_is_fetched_ahead_by_the_next_on_another_machine(far: FarImage, tmp_path: Path) -> None:
    far.output("cat /large > /dev/null")
    eventually((far.tier / "profiles" / far.tree).exists, "a profile for others")
    with contextlib.closing(FarImage(tmp_path / "other", Pushed(far.tier, far.store.tree(far.tree)), far.rig)) as other:
        running = other.start("go")
        eventually(lambda: other.is_here("large"), "what nobody has opened here")
        other.go()
        assert running.result().exited.exit_code == 0
    assert far.digest("large") in profiles.read(far.store, far.tree).objects


def test_what_belongs_together_is_fetched_ahead(rig: Rig, image: Path, tmp_path: Path) -> None:
    """By the first start, of which nobody knows anything."""
    root = tmp_path / "image"
    shutil.copytree(image, root, symlinks=True)
    (root / "large").unlink()
    package, library = root / "usr/lib/python3/dist-packages/package", root / "usr/lib/far/libfar.so.1"
    for path in (package / "a.pyc", package / "b/c.pyc", package / "d.pyc", library):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(BLOB_BYTES * 2 // 3))  # a pack has one of them
    (root / "bin/program").write_bytes(program_that_needs(library.name))
    far = FarImage(tmp_path / "far", push(tmp_path / "pushed", root), rig)
    try:
        far.output(f"cat /{(package / 'd.pyc').relative_to(root)} /bin/program > /dev/null")
        for path in (package / "a.pyc", package / "b/c.pyc", library):
            name = str(path.relative_to(root))
            eventually(lambda name=name: far.is_here(name), f"{name}, which nobody has opened")
    finally:
        far.close()


@pytest.mark.parametrize("lacking", ["fuse", "erofs"])
def test_where_it_cannot_be_all_is_fetched_before_a_container_starts(
    lacking: str, image: Path, interpreter: Interpreter, tmp_path: Path
) -> None:
    command = [sys.executable, str(RESTRICT), "lacks", lacking, "--", sys.executable, "-c", _WITHOUT]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(tmp_path), str(image), msgspec.json.encode(interpreter).decode()],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["missing"] == 0 and not told["mode"]["lazy"]
    assert told["mode"]["kind"] == ("directory" if lacking == "erofs" else "erofs")
    assert ("no FUSE" if lacking == "fuse" else "no EROFS") in told["mode"]["not_lazy"]
    assert told["log"].count("\n") == 1 and told["mode"]["not_lazy"] in told["log"]
    assert told["output"] == "from the image\n"


def test_a_partial_tree_is_whole_for_all_that_looks_after_the_store(far: FarImage) -> None:
    far.output("cat /etc/motd")
    assert verify(far.store).damaged == []
    assert far.store.statistics().partial_trees == 1
    collect(far.store)
    assert far.is_here("etc/motd")
    assert far.output("cat /etc/group > /dev/null; cat /etc/motd") == "from the image\n"
    far.lease.close()

    def is_gone() -> bool:
        collect(far.store)
        return far.store.statistics().partial_trees == far.store.statistics().objects == 0

    eventually(is_gone, "the end of what nobody keeps, once what came with it is put away")
