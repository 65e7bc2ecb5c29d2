"""Workers that have from each other what their containers need, through real machines' network."""

import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from farcall.cluster.authority import worker_context
from farcall.content import Store
from farcall.content.tiers import layout
from farcall.content.tiers.exchange import BlobClient
from farcall.errors import PermissionDeniedError
from tests.cluster.machines import Cluster, WorkerMachine, share_runners, workers_of
from tests.cluster.work import is_back, listing, until
from tests.conftest import Installation, descendants, short_directory

pytestmark = pytest.mark.root("network namespaces")

PROGRAM = """
import hashlib
import farcall

app = farcall.App("weights")


@app.function(volumes={"/weights": farcall.Volume.from_name("NAME")})
def digest():
    return hashlib.sha256(open("/weights/large", "rb").read()).hexdigest()


@app.local_entrypoint()
def main():
    print(digest.remote())
"""


class Weights:
    """A volume with a large file, and a program that reads it on one worker or another."""

    def __init__(self, made: Cluster, folder: Path, name: str, size: int) -> None:
        data = os.urandom(size)
        (folder / "large").write_bytes(data)
        self.size = size
        self.made = made
        self.digest = hashlib.sha256(data).hexdigest()
        self.program = folder / f"{name}.py"
        self.program.write_text(PROGRAM.replace("NAME", name))
        made.server.farcall("volume", "create", name)
        made.server.farcall("volume", "put", name, folder / "large", "/large")
        self.run_on(made.workers[0])
        store = Store(self.trees.parent)
        wanted = bytes.fromhex(self.digest)
        self.tree_id = next(one for one in os.listdir(self.trees) if wanted in store.tree(one).digests())

    @property
    def trees(self) -> Path:
        return Path(self.made.server.environment["XDG_DATA_HOME"]) / "farcall" / "content" / "local" / "trees"

    def run_on(self, worker: WorkerMachine) -> None:
        """Nothing else has room meanwhile."""
        with only(self.made, worker):
            assert self.made.server.farcall("run", "--quiet", self.program).stdout.split() == [self.digest]


@contextmanager
def only(made: Cluster, worker: WorkerMachine) -> Iterator[None]:
    """Containers are made there, and nowhere else."""
    others = [one for one in made.workers if one is not worker]
    for one in others:
        made.server.farcall("worker", "drain", one.name)
    yield
    for one in others:
        made.server.farcall("worker", "drain", one.name, "--undo")


def ask(made: Cluster, giver: WorkerMachine, asker: WorkerMachine | None, tree_id: str, name: str) -> bytes:
    """What a worker answers to another, or to somebody without a certificate."""
    keys = asker.place.root / "state" / "worker" if asker is not None else None
    authority = (giver.place.root / "state" / "worker" / "ca.pem").read_bytes()
    own = (keys / "worker.pem", keys / "worker.key") if keys is not None else (None, None)
    context = worker_context(authority, *own)
    context.check_hostname = False
    port = next(one["peer_port"] for one in listing(made) if one["name"] == giver.name)

    def connect() -> socket.socket:
        return context.wrap_socket(socket.create_connection((giver.own_address, port), 60))

    client = BlobClient(giver.name, connect, 60.0)
    try:
        return client.ask("get", tree_id, name)
    finally:
        client.close()


@pytest.mark.long
def test_what_a_neighbour_has_comes_from_it(two_workers: Cluster, tmp_path: Path) -> None:
    first, second = two_workers.workers
    weights = Weights(two_workers, tmp_path, "neighbours", 40 << 20)
    before = first.sent
    weights.run_on(second)
    assert first.sent - before > weights.size, "all of it came from the other worker"


@pytest.mark.long
def test_who_is_not_allowed_a_tree_gets_nothing_of_it(two_workers: Cluster, tmp_path: Path) -> None:
    first, second = two_workers.workers
    weights = Weights(two_workers, tmp_path, "refused", 10 << 20)
    store = Store(Path(first.place.environment["XDG_DATA_HOME"]) / "farcall" / "content" / "local")
    index = layout.stored_index(store, weights.tree_id)
    assert index is not None
    name = next(name for name in index.names() if name.startswith("pieces/"))
    with pytest.raises(PermissionDeniedError, match="the server has not said"):
        ask(two_workers, first, second, weights.tree_id, name)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(two_workers, first, None, weights.tree_id, name)
    assert len(ask(two_workers, first, first, weights.tree_id, name)) >= 4 << 20, "who is allowed it gets it"
    weights.run_on(second)
    assert ask(two_workers, first, second, weights.tree_id, name)


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "cut", "stopped"])
def test_a_neighbour_that_goes_in_the_middle(two_workers: Cluster, tmp_path: Path, how: str) -> None:
    first, second = two_workers.workers
    weights = Weights(two_workers, tmp_path, f"middle-{how}", 300 << 20)
    before = first.sent
    with only(two_workers, second):
        command = [sys.executable, "-m", "farcall", "run", "--quiet", str(weights.program)]
        running = subprocess.Popen(
            command, env=two_workers.server.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        until(lambda: first.sent - before > 20 << 20)
        assert first.process is not None
        if how == "killed":
            first.kill()
        elif how == "cut":
            first.cut()
        else:
            first.process.send_signal(signal.SIGSTOP)
        out, err = running.communicate(timeout=100)
        assert out.split() == [weights.digest], err
    assert first.sent - before < weights.size, "not all of it came from the one that was gone"
    if how == "cut":
        first.mend()
    elif how == "stopped":
        first.process.send_signal(signal.SIGCONT)
    first.stop()
    first.join()  # at another port: the one that did not answer is left alone for a while
    until(is_back(two_workers, first))


IMAGE = """
import farcall

app = farcall.App("slim", image=farcall.Image.debian_slim(python_version="3.11").env({"MADE": "here"}))


@app.function()
def f():
    import os, json.decoder, xml.dom.minidom
    return os.environ["MADE"] + json.decoder.__name__


@app.local_entrypoint()
def main():
    print(f.remote())
"""
SAID = ["herejson.decoder"]
BUILD_SECONDS = 500
OPENAT = {"x86_64": 257, "aarch64": 56}[os.uname().machine]


def partial_trees(place: Installation) -> int:
    return json.loads(place.farcall("content", "stat", "--json").stdout)["partial_trees"]


@pytest.mark.long
@pytest.mark.timeout(BUILD_SECONDS)
def test_an_image_starts_before_it_has_arrived_and_does_arrive(two_workers: Cluster, tmp_path: Path) -> None:
    first, second = two_workers.workers
    program = tmp_path / "slim.py"
    program.write_text(IMAGE)

    def run_on(worker: WorkerMachine) -> None:
        with only(two_workers, worker):
            assert two_workers.server.farcall("run", program, timeout=BUILD_SECONDS).stdout.split() == SAID

    run_on(first)
    assert partial_trees(first.place) == 1
    before = first.sent
    run_on(second)
    assert partial_trees(second.place) == 1
    assert first.sent - before > 1 << 20, "some of it came from the neighbour"
    until(lambda: partial_trees(first.place) == partial_trees(second.place) == 0)
    for worker in (first, second):
        worker.place.farcall("content", "verify")
        run_on(worker)


@pytest.fixture(scope="module")
def shelf(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An object store that has the image."""
    folder = tmp_path_factory.mktemp("shelf")
    program = folder / "slim.py"
    program.write_text(IMAGE)
    with short_directory() as root:
        builder = Installation.under(root / "builder", shared)
        builder.environment["FARCALL_OBJECT_STORE"] = str(folder / "store")
        try:
            assert builder.farcall("run", program, timeout=BUILD_SECONDS).stdout.split() == SAID
            builder.farcall("content", "push", timeout=BUILD_SECONDS)
        finally:
            builder.farcall("server", "stop", "--force")
    return folder


@contextmanager
def server_with(store: Path, shared: Path) -> Iterator[tuple[Installation, WorkerMachine]]:
    """A server that has nothing of its own, and its only worker, which has no access to the object store."""
    with short_directory() as root:
        server = Installation.under(root / "server", root / "server" / "own")
        server.environment["FARCALL_OBJECT_STORE"] = str(store)
        share_runners(shared, Path(server.environment["XDG_DATA_HOME"]))
        try:
            server.farcall("server", "start", "--listen", "127.0.0.1:0", "--no-own-worker")
            log = server.root / "state" / "server.log"
            with workers_of(server, log, root, shared, 1, has_lines=False) as made:
                yield server, made.workers[0]
        finally:
            server.farcall("server", "stop", "--force")


@pytest.mark.long
@pytest.mark.timeout(BUILD_SECONDS)
def test_what_the_server_has_only_elsewhere_reaches_its_workers(shelf: Path, shared: Path) -> None:
    with server_with(shelf / "store", shared) as (server, worker):
        ran = server.farcall("run", shelf / "slim.py", timeout=BUILD_SECONDS)
        assert ran.stdout.split() == SAID
        assert partial_trees(server) > 0, "not all of it has come by way of the server's own store"
        until(lambda: partial_trees(worker.place) == 0)
        worker.place.farcall("content", "verify")


@pytest.mark.long
@pytest.mark.timeout(BUILD_SECONDS)
def test_a_server_ends_though_the_object_store_hangs(shelf: Path, shared: Path, tmp_path: Path) -> None:
    """As where a file system is gone: whoever opens one of its files waits for ever."""
    store = tmp_path / "store"
    shutil.copytree(shelf / "store", store)
    for pack in store.glob("packs/*/*"):
        pack.unlink()
        os.mkfifo(pack)
    with server_with(store, shared) as (server, _):
        pid = json.loads(server.farcall("server", "status", "--json").stdout)["pid"]
        command = [sys.executable, "-m", "farcall", "run", shelf / "slim.py"]
        running = subprocess.Popen(command, env=server.environment, stderr=subprocess.DEVNULL)
        try:
            until(lambda: opens_something(pid))
            server.farcall("server", "stop", "--force")
            until(lambda: pid not in descendants())
        finally:
            running.terminate()
            running.wait()
        log = (server.root / "state" / "server.log").read_text()
    assert "the process ends without waiting for what its threads are at: contents" in log


def opens_something(pid: int) -> bool:
    """Whether a thread of it waits for a file to be opened."""
    return any(task.read_text().startswith(f"{OPENAT} ") for task in Path("/proc", str(pid), "task").glob("*/syscall"))
