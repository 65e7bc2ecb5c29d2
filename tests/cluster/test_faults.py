"""Workers that are cut off while they work, in either direction, and for good: nothing lost, nothing answered twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.machines import WITHIN, Cluster
from tests.cluster.work import Map, is_back, listing, states, until

pytestmark = pytest.mark.root("network namespaces")


@pytest.mark.long
def test_a_cut_that_is_shorter_than_the_lease_loses_nothing(two_workers: Cluster, tmp_path: Path) -> None:
    """And no container: those that ran before run after it."""
    running = Map(two_workers, tmp_path, 500, 0.02)
    for worker in two_workers.workers:
        worker.cut()
    time.sleep(2.0)
    for worker in two_workers.workers:
        worker.mend()
    running.result()
    log = (two_workers.server.root / "state" / "server.log").read_text()
    assert states(two_workers) == {"w1": "ready", "w2": "ready"}
    assert "w1 is lost: worker w1 was silent" not in log, log


LEAVES = """
import os, time
import farcall

app = farcall.App("leaves")


@app.function()
def large():
    print("begun", flush=True)
    time.sleep(2)
    return os.urandom(64 << 20)


@app.local_entrypoint()
def main():
    print(len(large.remote()), "bytes")
"""


@pytest.mark.long
def test_a_worker_that_leaves_while_its_line_is_cut_delivers_what_ran(two_workers: Cluster, tmp_path: Path) -> None:
    program = tmp_path / "leaves.py"
    program.write_text(LEAVES)
    command = [sys.executable, "-m", "farcall", "run", "--quiet", str(program)]
    with subprocess.Popen(command, env=two_workers.server.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        names = {one["name"] for one in listing(two_workers) if one["containers"]}
        [worker] = [one for one in two_workers.workers if one.name in names]
        leaving, worker.process = worker.process, None
        assert leaving is not None
        leaving.send_signal(signal.SIGINT)
        until(lambda: states(two_workers)[worker.name] != "ready")
        worker.cut()
        deadline = time.monotonic() + 2.5  # the lease is longer
        while worker.cgroups() and time.monotonic() < deadline:
            time.sleep(0.02)
        worker.mend()
        assert process.communicate(timeout=WITHIN)[0] == f"{64 << 20} bytes\n"  # it has not begun a second time
    assert leaving.wait(WITHIN) == 0
    worker.join()
    until(is_back(two_workers, worker))


@pytest.mark.long
@pytest.mark.parametrize(("to_server", "from_server"), [(True, True), (True, False), (False, True)])
def test_a_partition(two_workers: Cluster, tmp_path: Path, to_server: bool, from_server: bool) -> None:
    running = Map(two_workers, tmp_path, 400, 0.02)
    worker = two_workers.workers[0]
    worker.cut(to_server=to_server, from_server=from_server)
    running.result()
    until(lambda: states(two_workers)[worker.name] == "away")
    assert "containers are ended" in worker.log.read_text() or "has not answered" in worker.log.read_text()
    worker.mend()
    until(is_back(two_workers, worker))


@pytest.mark.long
@pytest.mark.parametrize("shift", [-40 * 365 * 86400, 30 * 365 * 86400], ids=["1986", "2056"])
def test_a_worker_with_a_wrong_clock(two_workers: Cluster, tmp_path: Path, shift: int) -> None:
    """By which no certificate is valid: the server's clock is the only one that counts."""
    library = tmp_path / "shifted_clock.so"
    source = Path(__file__).parent / "shifted_clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    before = len((two_workers.server.root / "state" / "server.log").read_text())
    one, other = two_workers.workers
    for worker in two_workers.workers:
        worker.stop()
    one.join(LD_PRELOAD=str(library), CLOCK_SHIFT=str(shift))
    said = "ahead of" if shift > 0 else "behind"
    one.until(lambda: f"{said} the server's" in one.log.read_text())
    until(is_back(two_workers, one))
    [offset] = [one["clock_offset"] for one in listing(two_workers) if one["state"] == "ready"]
    assert abs(offset - shift) < 600
    Map(two_workers, tmp_path, 1000, 0.02).result()  # for longer than the lease
    log = (two_workers.server.root / "state" / "server.log").read_text()[before:]
    assert f"{one.name} was silent" not in log, log
    one.stop()
    for worker in (one, other):
        worker.join()
        until(is_back(two_workers, worker))


@pytest.mark.long
def test_a_half_open_connection_is_noticed(two_workers: Cluster, tmp_path: Path) -> None:
    """The peer is gone without a word, as when its power fails."""
    worker = two_workers.workers[0]
    worker.cut()
    worker.kill()
    until(lambda: states(two_workers)[worker.name] == "away")
    worker.mend()
    worker.join()
    until(is_back(two_workers, worker))


@pytest.mark.long
def test_a_slow_line(two_workers: Cluster, tmp_path: Path) -> None:
    """Its worker does what comes through, and is not taken for lost."""
    before = len((two_workers.server.root / "state" / "server.log").read_text())
    worker = two_workers.workers[0]
    running = Map(two_workers, tmp_path, 400, 0.02, 8 << 10)
    worker.slow(1000)
    sent = worker.sent
    running.result()
    assert worker.sent - sent > 100 << 10, "it has gone on answering"
    assert states(two_workers) == {"w1": "ready", "w2": "ready"}
    log = (two_workers.server.root / "state" / "server.log").read_text()[before:]
    assert "w1 is lost" not in log and "w1 was silent" not in log, log
    worker.mend()


NO_DESCRIPTOR = """
import errno, os

made = os.memfd_create


def memfd_create(name, flags=0):
    if name == "farcall" and os.path.exists(FLAG):
        os.unlink(FLAG)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return made(name, flags)


os.memfd_create = memfd_create
"""

READS = """
import os
import farcall

app = farcall.App("reads")


@app.function(volumes={"/weights": farcall.Volume.from_name("lacking")})
def size():
    return os.path.getsize("/weights/large")


@app.local_entrypoint()
def main():
    print(size.remote())
"""


@pytest.mark.long
def test_a_worker_that_once_lacked_a_descriptor_for_content_gets_content_again(
    two_workers: Cluster, tmp_path: Path
) -> None:
    server, one = two_workers.server, two_workers.workers[0]
    (tmp_path / "large").write_bytes(os.urandom(1 << 20))
    server.farcall("volume", "create", "lacking")
    server.farcall("volume", "put", "lacking", tmp_path / "large", "/large")
    (tmp_path / "reads.py").write_text(READS)
    flag = tmp_path / "flag"
    (tmp_path / "sitecustomize.py").write_text(NO_DESCRIPTOR.replace("FLAG", repr(str(flag))))
    for worker in two_workers.workers:
        worker.stop()
    one.join(PYTHONPATH=str(tmp_path))
    until(is_back(two_workers, one))
    flag.touch()

    def works() -> bool:
        ran = server.farcall("run", tmp_path / "reads.py", check=False)
        return ran.returncode == 0 and ran.stdout.endswith(f"{1 << 20}\n")

    until(works)
    assert not flag.exists()
    one.stop()
    for worker in two_workers.workers:
        worker.join()
        until(is_back(two_workers, worker))
