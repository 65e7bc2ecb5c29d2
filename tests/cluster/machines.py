"""Several machines on one: a server, and workers in network namespaces of their own, whose lines can be cut.

Each worker has a line to the server's side of its own, a pair of virtual interfaces. Farcall's state, content and home
are each machine's own; the system and the interpreters are the same.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from farcall.launcher.process import name_of
from tests.conftest import Installation

NOBODY = "02:00:00:00:00:00"  # a network card that there is not: what is sent to it vanishes
CGROUPS = "/sys/fs/cgroup"
WITHIN = 60.0  # seconds for what must happen on a machine that is busy


@dataclass
class WorkerMachine:
    """A worker in a network namespace: `cut` and `mend` its line, in both directions or in one."""

    name: str
    place: Installation
    number: int
    process: subprocess.Popen[bytes] | None = None
    holder: subprocess.Popen[bytes] | None = None  # a process that the namespace lives with
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.place.root / "worker.log"

    @property
    def interface(self) -> str:
        """This side's end of its line."""
        return f"fw{os.getpid() % 100000}.{self.number}"

    def _address(self, end: int) -> str:
        """In a subnet of four that no other process's tests have."""
        own = os.getpid() % (1 << 14)
        return f"10.{200 + self.number}.{own >> 6}.{(own & 63) * 4 + end}"

    @property
    def server_address(self) -> str:
        return self._address(1)

    @property
    def own_address(self) -> str:
        return self._address(2)

    def wire(self) -> None:
        """Lays its line."""
        self.holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.holder.stdout is not None
        self.holder.stdout.readline()
        peer = ("type", "veth", "peer", "name", "line", "netns", str(self.holder.pid))
        run("ip", "link", "add", self.interface, *peer)
        run("ip", "addr", "add", f"{self.server_address}/30", "dev", self.interface)
        run("ip", "link", "set", self.interface, "up")
        # What comes from one worker for another is passed on.
        with suppress(OSError):  # where that cannot be set, workers do without each other
            Path(f"/proc/sys/net/ipv4/conf/{self.interface}/forwarding").write_text("1")
        run(*self.inside, "ip", "link", "set", "lo", "up")
        run(*self.inside, "ip", "addr", "add", f"{self.own_address}/30", "dev", "line")
        run(*self.inside, "ip", "link", "set", "line", "up")
        run(*self.inside, "ip", "route", "add", "default", "via", self.server_address)

    @property
    def inside(self) -> tuple[str, ...]:
        """What runs a command in its namespace, where it has one."""
        if self.holder is None:
            return ()
        return "nsenter", f"--net=/proc/{self.holder.pid}/ns/net"

    @property
    def sent(self) -> int:
        """Bytes that have come from it so far."""
        return int(Path(f"/sys/class/net/{self.interface}/statistics/rx_bytes").read_text())

    def unwire(self) -> None:
        """Takes its line away."""
        subprocess.run(["ip", "link", "del", self.interface], capture_output=True)
        if self.holder is not None:
            self.holder.communicate()
            self.holder = None

    def cut(self, *, to_server: bool = True, from_server: bool = True) -> None:
        """From now on nothing passes; what is sent vanishes without a word."""
        if from_server:
            run("ip", "neigh", "replace", self.own_address, "lladdr", NOBODY, "dev", self.interface, "nud", "permanent")
        if to_server:
            where = ("dev", "line", "nud", "permanent")
            run(*self.inside, "ip", "neigh", "replace", self.server_address, "lladdr", NOBODY, *where)

    def slow(self, kbit: int) -> None:
        """From now on only so many bits pass in a second, in each direction; what waits longer for it is dropped."""
        rate = ("root", "tbf", "rate", f"{kbit}kbit", "burst", "16kb", "latency", "500ms")
        run("tc", "qdisc", "add", "dev", self.interface, *rate)
        run(*self.inside, "tc", "qdisc", "add", "dev", "line", *rate)

    def mend(self) -> None:
        """All passes again."""
        for command in (
            ["tc", "qdisc", "del", "dev", self.interface, "root"],
            [*self.inside, "tc", "qdisc", "del", "dev", "line", "root"],
            ["ip", "neigh", "del", self.own_address, "dev", self.interface],
            [*self.inside, "ip", "neigh", "del", self.server_address, "dev", "line"],
        ):
            subprocess.run(command, capture_output=True)

    def join(self, *arguments: str, token: str = "", wait: bool = True, **environment: str) -> None:
        """Starts `farcall worker join`; returns when it is ready."""
        command = [*self.inside, sys.executable, "-m", "farcall", "worker", "join"]
        before = self.log.read_text().count("ready") if self.log.exists() else 0
        variables = self.place.environment | environment | ({"FARCALL_WORKER_TOKEN": token} if token else {})
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*command, *arguments], env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if wait:
            self.until(lambda: self.log.read_text().count("ready") > before)

    def until(self, condition: object, within: float = WITHIN) -> None:
        deadline = time.monotonic() + within
        while not condition():  # type: ignore[operator]
            assert self.process is None or self.process.poll() is None, f"{self.name} ended:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"{self.name} did not come so far:\n{self.log.read_text()}"
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends it as a user does who cannot wait."""
        process, self.process = self.process, None
        if process is None:
            return
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
                return
            except subprocess.TimeoutExpired:
                continue
        process.kill()
        process.wait()

    def cgroups(self) -> set[str]:
        """Those of the containers that run here; none where the machine has no cgroups to write to."""
        mine = f"farcall-{name_of(self.place.root / 'state' / 'worker' / 'launcher')}/ta-"
        return {folder for folder, _, _ in os.walk(CGROUPS) if mine in folder}

    def kill(self) -> None:
        """Kills its process; what it had running is left to itself."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@dataclass
class Cluster:
    """A server and its workers."""

    server: Installation
    workers: list[WorkerMachine]
    log: Path  # the server's

    def token(self, worker: WorkerMachine, *arguments: str) -> str:
        """A token by which that worker reaches the server."""
        host = "127.0.0.1" if worker.holder is None else worker.server_address
        address = f"{host}:{self.port}"
        return self.server.farcall("worker", "token", "create", "--address", address, *arguments).stdout.strip()

    @property
    def port(self) -> int:
        return int(self.log.read_text().rpartition("workers can join at ")[2].split()[0].rpartition(":")[2])


@contextmanager
def cluster(
    root: Path, shared: Path, count: int = 2, *, lease: str = "10s", has_lines: bool = True
) -> Iterator[Cluster]:
    """A server without a worker of its own, and workers that have joined it, over lines of their own or on loopback."""
    if has_lines and os.geteuid() != 0:
        pytest.skip("needs host root: it makes network namespaces")
    server = Installation.under(root / "server", shared)
    arguments = ("--listen", "0.0.0.0:0", "--worker-lease", lease, "--no-own-worker")
    try:
        server.farcall("server", "start", *arguments)
        with workers_of(server, server.root / "state" / "server.log", root, shared, count, has_lines=has_lines) as made:
            yield made
    finally:
        server.farcall("server", "stop", "--force")


@contextmanager
def workers_of(
    server: Installation,
    log: Path,
    root: Path,
    shared: Path,
    count: int = 2,
    *,
    has_lines: bool = True,
    settings: Mapping[str, str] = {},
) -> Iterator[Cluster]:
    """Workers that have joined a running server, whose log is that file. `settings` are theirs, as variables."""
    workers = [
        WorkerMachine(f"w{number}", Installation.under(root / f"w{number}", root / f"w{number}" / "own"), number)
        for number in range(1, count + 1)
    ]
    for worker in workers:
        worker.place.environment |= settings
        share_runners(shared, Path(worker.place.environment["XDG_DATA_HOME"]))
    made = Cluster(server, workers, log)
    try:
        for worker in workers:
            if has_lines:
                worker.wire()
            worker.join("--name", worker.name, "--label", f"number={worker.number}", token=made.token(worker))
        yield made
    finally:
        for worker in workers:
            if worker.holder is not None:
                worker.mend()
            worker.stop()
            worker.unwire()


def share_runners(shared: Path, data: Path) -> None:
    """What farcall built for an interpreter is the same on all machines: not content, and costly to build."""
    place = data / "farcall"
    place.mkdir(parents=True, exist_ok=True)
    runners = shared / "data" / "farcall" / "runner"
    runners.mkdir(parents=True, exist_ok=True)
    (place / "runner").symlink_to(runners)
