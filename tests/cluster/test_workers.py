"""Functions on workers that have joined over TLS, through real machines' network."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.conftest import Dialog
from tests.cluster.machines import WITHIN, Cluster
from tests.cluster.work import Map, is_back, listing, states, until
from tests.conftest import Installation

pytestmark = pytest.mark.root("network namespaces")

PROGRAM = """
import os, socket
import farcall

app = farcall.App("far")


@app.function()
def where(x):
    print("hello from", x)
    os.write(1, b"raw\\n")
    return x, open("/proc/sys/kernel/random/boot_id").read() and socket.gethostname()


@app.function()
def inner(data):
    return len(data)


@app.function()
def outer(size):
    return inner.remote(bytes(size))


@app.local_entrypoint()
def main():
    print(where.remote(7)[0])
    print(sum(x for x, _ in where.map(range(500))))
    print(outer.remote(3_000_000))
"""


def test_functions_run_on_workers(two_workers: Cluster, tmp_path: Path) -> None:
    program = tmp_path / "far.py"
    program.write_text(PROGRAM)
    ran = two_workers.server.farcall("run", program)
    lines = [line for line in ran.stdout.splitlines() if not line.startswith(("hello", "raw"))]
    assert lines == ["7", str(sum(range(500))), "3000000"]
    assert ran.stdout.count("hello from") == 501
    assert ran.stdout.count("raw") == 501


def test_workers_are_listed(two_workers: Cluster) -> None:
    listed = listing(two_workers)
    assert [(one["name"], one["state"]) for one in listed] == [("w1", "ready"), ("w2", "ready")]
    assert all(one["cores"] >= 1 and one["memory_mib"] > 256 for one in listed)
    assert [one["address"] for one in listed] == [worker.own_address for worker in two_workers.workers]


def test_the_doctor_knows_the_workers(two_workers: Cluster) -> None:
    def findings(place: Installation) -> dict[str, tuple[str, str]]:
        said = json.loads(place.farcall("doctor", "--json", check=False).stdout)["findings"]
        return {one["name"]: (one["status"], one["detail"]) for one in said if one["group"] == "workers"}

    found = findings(two_workers.server)
    assert "certificates are good until" in found["workers' port"][1]
    assert found["workers' port"][1].startswith("listens at 0.0.0.0:0, as `farcall server start` was told")
    for worker in two_workers.workers:
        status, detail = found[f"worker {worker.name}"]
        assert status == "ok" and "ready" in detail and worker.own_address in detail
        [(name, (status, detail))] = findings(worker.place).items()
        assert (name, status) == ("this machine as a worker", "ok")
        assert detail.startswith(f"{worker.name} of {worker.server_address}:")


def test_draining_moves_the_work_without_a_failed_call(two_workers: Cluster, tmp_path: Path) -> None:
    running = Map(two_workers, tmp_path, 300, 0.02)
    two_workers.server.farcall("worker", "drain", "w1")
    drained = next(one for one in listing(two_workers) if one["name"] == "w1")
    assert (drained["state"], drained["containers"]) == ("draining", 0)
    running.result()
    two_workers.server.farcall("worker", "drain", "w1", "--undo")
    assert states(two_workers) == {"w1": "ready", "w2": "ready"}


HELD = """
import os, time
import farcall

app = farcall.App("held")


@app.function(region="number=1")
def hold():
    print("held", flush=True)
    while not os.path.exists("/tmp/let-go"):
        time.sleep(0.05)


@app.local_entrypoint()
def main():
    hold.remote()
"""


def test_a_drain_that_is_undone_says_so(two_workers: Cluster, tmp_path: Path) -> None:
    """Its command was waiting for a container that runs on."""
    program = tmp_path / "held.py"
    program.write_text(HELD)
    server = two_workers.server
    pipe = subprocess.PIPE
    farcall = (sys.executable, "-m", "farcall")
    with subprocess.Popen([*farcall, "run", str(program)], env=server.environment, stdout=pipe, text=True) as running:
        assert running.stdout is not None
        assert any("held" in line for line in running.stdout)
        drain = [*farcall, "worker", "drain", "w1"]
        with subprocess.Popen(drain, env=server.environment, stderr=pipe, text=True) as draining:
            until(lambda: states(two_workers)["w1"] == "draining")
            assert draining.poll() is None, "it waits for what runs there"
            server.farcall("worker", "drain", "w1", "--undo")
            _, said = draining.communicate(timeout=WITHIN)
        assert draining.returncode not in (0, 2), said
        said = " ".join(said.split())
        assert "worker w1 is not drained" in said and "drain it once more" in said
        assert "is drained:" not in said
        let_go(server)
        assert running.wait(WITHIN) == 0
    assert states(two_workers)["w1"] == "ready"


def let_go(server: Installation) -> None:
    listed = json.loads(server.farcall("container", "list", "--json").stdout)
    [container] = [one for one in listed if one["function"] == "hold"]
    server.farcall("container", "exec", container["container_id"], "touch", "/tmp/let-go")


def test_who_reads_a_commands_output_slowly_costs_the_server_no_memory(two_workers: Cluster, tmp_path: Path) -> None:
    """Nor any of the output, though the command has ended long ago."""
    program = tmp_path / "held.py"
    program.write_text(HELD)
    server = two_workers.server
    size = 300_000_000
    farcall = [sys.executable, "-m", "farcall"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*farcall, "run", str(program)], env=server.environment, stdout=pipe, text=True) as running:
        assert running.stdout is not None
        assert any("held" in line for line in running.stdout)
        [container] = json.loads(server.farcall("container", "list", "--json").stdout)
        pid = json.loads(server.farcall("server", "status", "--json").stdout)["pid"]
        before = resident(pid)
        command = [*farcall, "container", "exec", container["container_id"], "head", "-c", str(size), "/dev/zero"]
        with subprocess.Popen(command, env=server.environment, stdout=pipe) as reading:
            assert reading.stdout is not None
            got = len(reading.stdout.read(1))
            until(is_steady(lambda: two_workers.workers[0].sent))
            assert resident(pid) - before < 100_000_000
            while piece := reading.stdout.read(1 << 20):
                got += len(piece)
        assert got == size
        let_go(server)
        assert running.wait(WITHIN) == 0


PAIR = """
import time
import farcall

app = farcall.App("pair")


@app.function(region="number=1")
def one():
    print("one", flush=True)
    time.sleep(600)


@app.function(region="number=2")
def two():
    print("two", flush=True)
    time.sleep(600)


@app.local_entrypoint()
def main():
    calls = [one.spawn(), two.spawn()]
    calls[0].get()
"""


def test_a_worker_that_does_not_answer_hides_only_its_own_usage(two_workers: Cluster, tmp_path: Path) -> None:
    program = tmp_path / "pair.py"
    program.write_text(PAIR)
    server, silent = two_workers.server, two_workers.workers[0].process
    assert silent is not None

    def usages() -> dict[str, tuple[str, int | None]]:
        listed = json.loads(server.farcall("container", "list", "--json").stdout)
        return {one["function"]: (one["worker"], one["memory_bytes"]) for one in listed}

    command = [sys.executable, "-m", "farcall", "run", str(program)]
    with subprocess.Popen(command, env=server.environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        seen = {next(running.stdout).split()[-1] for _ in range(2)}
        assert seen == {"one", "two"}
        try:
            before = usages()
            silent.send_signal(signal.SIGSTOP)
            found = usages()
        finally:
            silent.send_signal(signal.SIGCONT)
            running.send_signal(signal.SIGINT)
        running.wait(WITHIN)
    assert found["one"] == ("w1", None)
    assert found["two"][0] == "w2" and (found["two"][1] is None) == (before["two"][1] is None)
    until(lambda: states(two_workers) == {"w1": "ready", "w2": "ready"})


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def is_steady(count: Callable[[], int]) -> Callable[[], bool]:
    """Whether a count of bytes has hardly grown in the last second."""
    seen = [(time.monotonic(), count())]

    def check() -> bool:
        now = time.monotonic()
        seen.append((now, count()))
        while now - seen[1][0] > 1:
            del seen[0]
        return now - seen[0][0] > 1 and seen[-1][1] - seen[0][1] < 100_000

    return check


def test_a_drain_says_what_it_waits_for(two_workers: Cluster, tmp_path: Path) -> None:
    """Once, or as it changes on a terminal; and a Ctrl-C ends the waiting, not the drain."""
    program = tmp_path / "held.py"
    program.write_text(HELD)
    server = two_workers.server
    farcall = [sys.executable, "-m", "farcall"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*farcall, "run", str(program)], env=server.environment, stdout=pipe, text=True) as running:
        assert running.stdout is not None
        assert any("held" in line for line in running.stdout)
        drain = [*farcall, "worker", "drain", "w1"]
        with subprocess.Popen(drain, env=server.environment, stderr=pipe, text=True) as draining:
            assert draining.stderr is not None
            assert "worker w1: waiting for 1 container, 1 input running" in draining.stderr.readline()
            draining.send_signal(signal.SIGINT)
            _, said = draining.communicate(timeout=WITHIN)
        assert draining.returncode == 130
        assert said.startswith("worker w1 is still being drained") and "--undo" in said and len(said.splitlines()) == 1
        assert states(two_workers)["w1"] == "draining"
        again = Dialog(server.environment, "worker", "drain", "w1")
        again.until("\rworker w1: waiting for 1 container, 1 input running\x1b[K", WITHIN)
        again.until("\rworker w1: waiting for 1 container, 1 input running\x1b[K", WITHIN)
        let_go(server)
        again.until("\r\x1b[Kworker w1 is drained: it has no containers", WITHIN)
        assert again.end() == 0
        assert running.wait(WITHIN) == 0
    server.farcall("worker", "drain", "w1", "--undo")
    until(is_back(two_workers, two_workers.workers[0]))


def test_what_a_worker_cannot_do_is_said_with_its_name(two_workers: Cluster, tmp_path: Path) -> None:
    program = tmp_path / "noted.py"
    program.write_text(NOTED)
    worker = two_workers.workers[0]
    worker.stop()
    labelled = ("--label", "number=1")
    worker.join("--simulate-gpu", "T4=1", *labelled)
    ran = two_workers.server.farcall("run", program)
    assert "worker w1: " in ran.stderr and "simulated" in ran.stderr
    worker.stop()
    worker.join(*labelled)
    until(lambda: states(two_workers) == {"w1": "ready", "w2": "ready"})


NOTED = """
import farcall

app = farcall.App("noted")


@app.function(gpu="T4")
def f():
    pass


@app.local_entrypoint()
def main():
    f.remote()
"""


def test_a_worker_that_leaves_is_not_kept_by_a_drain_that_is_undone(two_workers: Cluster, tmp_path: Path) -> None:
    program = tmp_path / "held.py"
    program.write_text(HELD)
    server, worker = two_workers.server, two_workers.workers[0]
    command = [sys.executable, "-m", "farcall", "run", str(program)]
    with subprocess.Popen(command, env=server.environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert any("held" in line for line in running.stdout)
        assert worker.process is not None
        worker.process.send_signal(signal.SIGINT)
        until(lambda: states(two_workers)["w1"] == "draining")
        server.farcall("worker", "drain", "w1", "--undo")
        assert states(two_workers)["w1"] == "draining"
        let_go(server)
        assert running.wait(WITHIN) == 0
    assert worker.process.wait(WITHIN) == 0
    worker.join()
    until(is_back(two_workers, worker))


def test_a_worker_that_is_killed_in_the_middle_of_a_map(two_workers: Cluster, tmp_path: Path) -> None:
    """Started again, it is what it was."""
    running = Map(two_workers, tmp_path, 400, 0.02)
    busiest = max(listing(two_workers), key=lambda one: one["containers"])
    assert busiest["containers"]
    worker = next(worker for worker in two_workers.workers if worker.name == busiest["name"])
    ran = worker.cgroups()
    worker.kill()
    until(
        lambda: not worker.cgroups() & ran
    )  # its launcher ends what nobody will take up, long before the lease is over
    running.result()
    assert f"was lost: worker {worker.name} was silent for" in two_workers.server.farcall("logs", "steady").stderr
    worker.join()
    until(is_back(two_workers, worker))


PLACED = """
import farcall

app = farcall.App("placed")


@app.function(region="eu")
def in_eu():
    return 1


@app.function(region=["nowhere", "disk=nvme"])
def on_nvme():
    return 2


@app.local_entrypoint()
def main():
    import json, subprocess, sys

    def says(*words):
        command = [sys.executable, "-m", "farcall", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def container_of(name):
        return next(one for one in json.loads(says("container", "list", "--json")) if one["function"] == name)

    assert in_eu.remote() == 1
    assert on_nvme.remote() == 2
    for name in ("in_eu", "on_nvme"):
        one = container_of(name)
        print(name, one["worker"], one["done"], one["state"])
        print(says("container", "exec", one["container_id"], "echo", "entered").strip())
        says("container", "stop", one["container_id"])
        ended = json.loads(says("container", "inspect", one["container_id"], "--json"))
        print(ended["ended"].partition(";")[0])
"""


def has_waiting(made: Cluster) -> bool:
    return any(one["waiting"] for one in json.loads(made.server.farcall("app", "list", "--json").stdout))


def test_containers_are_placed_seen_and_entered_where_they_are(two_workers: Cluster, tmp_path: Path) -> None:
    program = tmp_path / "placed.py"
    program.write_text(PLACED)
    for worker, words in zip(two_workers.workers, (("--region", "eu"), ("--label", "disk=nvme")), strict=True):
        worker.stop()
        worker.join(*words)
    until(lambda: states(two_workers) == {"w1": "ready", "w2": "ready"})
    ran = two_workers.server.farcall("run", "--quiet", program, check=False)
    assert ran.stdout.splitlines() == [
        "in_eu w1 1 ready",
        "entered",
        "stopped by hand",
        "on_nvme w2 1 ready",
        "entered",
        "stopped by hand",
    ], ran.stderr
    away = two_workers.workers[0]
    away.stop()
    until(lambda: states(two_workers)["w1"] == "away")
    assert next(one["region"] for one in listing(two_workers) if one["name"] == "w1") == "eu"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(two_workers.server.farcall, "run", "--quiet", program, check=False)
        until(lambda: running.done() or has_waiting(two_workers))
        away.join("--region", "eu")
        assert running.result().stdout.startswith("in_eu w1 1 ready"), running.result().stderr
    for worker in two_workers.workers:
        worker.stop()
        worker.join()
    until(lambda: states(two_workers) == {"w1": "ready", "w2": "ready"})
