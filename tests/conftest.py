"""What all tests share: the seed, an installation for each test module, and the search for what stays behind.

Seed: `make test` passes `--seed`, and a failure's header line says which one to pass to see it again.
Markers: `@pytest.mark.root("why")` and `@pytest.mark.kernel("overlay", "why")` skip with that reason where they must.
"""

import ctypes
import gc
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from farcall.launcher.process import name_of as cgroup_name

REPOSITORY = Path(__file__).resolve().parent.parent
PR_SET_CHILD_SUBREAPER = 36
SETTLE_SECONDS = 30.0  # how long after its stop a server's last processes and mounts may take to go


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--over", choices=("ssh", "workers"), help="conformance: over ssh, or on workers that have joined over TLS"
    )
    parser.addoption("--seed", type=int, default=None, help="seed of every random choice the tests make")


def pytest_configure(config: pytest.Config) -> None:
    # How long an example takes, or takes to be made, is the machine's affair.
    hypothesis.settings.register_profile(
        "farcall", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("farcall")
    if config.getoption("--seed") is None:
        config.option.seed = secrets.randbelow(2**31)
    # Orphans of what the tests start become children of this process instead of pid 1's, so that `leftovers` finds
    # them whoever their parent was, and finds nobody else's.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.order import LongestFirst

    return LongestFirst(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes
        from tests.order import place

        items.sort(key=lambda item: place(item.nodeid))


def pytest_collection_finish() -> None:
    # The tests, and all that they import, stay: a garbage collection looks only at what has come since.
    gc.collect()
    gc.freeze()


def pytest_report_header(config: pytest.Config) -> str:
    user = "root" if os.geteuid() == 0 else f"uid {os.geteuid()}"
    return f"farcall: --seed={config.getoption('--seed')}, {user}, Linux {os.uname().release}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if (root := item.get_closest_marker("root")) is not None and os.geteuid() != 0:
        pytest.skip(f"needs host root: {root.args[0]}")
    if (kernel := item.get_closest_marker("kernel")) is not None:
        filesystem, reason = kernel.args
        if filesystem not in Path("/proc/filesystems").read_text().split():
            pytest.skip(f"needs a kernel with {filesystem}: {reason}")


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """The session's seed. For random choices take `rng`, which differs from test to test."""
    return request.config.getoption("--seed")


@pytest.fixture
def rng(request: pytest.FixtureRequest, seed: int) -> random.Random:
    """A source of randomness that is the same for the same seed and test, whichever other tests run."""
    print(f"--seed={seed} has the same random choices again")  # which pytest shows of a test that fails
    return random.Random(f"{seed}:{request.node.nodeid}")


@dataclass
class Installation:
    """Directories of its own for one farcall: state, sockets, configuration, home; and the command line in them."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def under(cls, root: Path, shared: Path) -> "Installation":
        """State and sockets under `root`; under `shared` what servers may share and is costly to build."""
        kept = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "VIRTUAL_ENV")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        for name, directory in {
            "HOME": root / "home",
            "XDG_CONFIG_HOME": root / "config",
            "FARCALL_STATE_DIR": root / "state",
            "XDG_DATA_HOME": shared / "data",
            "XDG_CACHE_HOME": shared / "cache",
        }.items():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            environment[name] = str(directory)
        return cls(root, environment)

    def farcall(
        self,
        *arguments: str | Path,
        timeout: float = 100,
        cwd: Path | None = None,
        check: bool = True,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `farcall ARGUMENTS`; with `check`, a status other than 0 fails the test with everything it printed."""
        command = [sys.executable, "-m", "farcall", *map(str, arguments)]
        completed = subprocess.run(
            command,
            env=self.environment | environment,
            cwd=cwd or self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and completed.returncode != 0:
            pytest.fail(
                f"farcall {' '.join(map(str, arguments))} ended with {completed.returncode}\n"
                f"--- stdout\n{completed.stdout}\n--- stderr\n{completed.stderr}",
                pytrace=False,
            )
        return completed

    def start(self, *arguments: str | Path, until: str) -> "tuple[subprocess.Popen[str], list[str]]":
        """Starts `farcall ARGUMENTS` and reads its stderr to the line `until`: the process, and what it said."""
        command = [sys.executable, "-m", "farcall", *map(str, arguments)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=self.environment, stdout=pipe, stderr=pipe, text=True)
        assert process.stderr is not None
        said: list[str] = []
        while until not in said:
            line = process.stderr.readline()
            assert line, f"it ended before it said {until!r}: {said}"
            said.append(line.rstrip("\n"))
        return process, said


@contextmanager
def running_server(root: Path, shared: Path, **environment: str) -> Iterator[Installation]:
    """A server started as a user starts it, in directories of its own. When it has stopped, nothing may stay behind."""
    installation = Installation.under(root, shared)
    installation.environment |= environment
    before = snapshot(root)
    installation.farcall("server", "start")
    try:
        yield installation
    finally:
        installation.farcall("server", "stop", "--force")
        if left := leftovers(root, before):
            pytest.fail("stayed behind after `farcall server stop`:\n  " + "\n  ".join(left), pytrace=False)


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory under /tmp with a name short enough for Unix sockets (108 bytes), which pytest's own is not."""
    root = Path(tempfile.mkdtemp(prefix="fc-", dir="/tmp"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What farcall builds for an interpreter, once for all tests of a session."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def installation(shared: Path) -> Iterator[Installation]:
    """Directories for one test, with no server running. A server that the test starts must be gone when it ends."""
    with short_directory() as root:
        before = snapshot(root)
        made = Installation.under(root, shared)
        yield made
        made.farcall("server", "stop", "--force", check=False)
        if left := leftovers(root, before):
            pytest.fail("stayed behind after the test:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(scope="module")
def server(shared: Path) -> Iterator[Installation]:
    """A running server, shared by the tests of a module."""
    with short_directory() as root, running_server(root, shared) as installation:
        yield installation


@pytest.fixture(scope="session")
def session_server(shared: Path) -> Iterator[Installation]:
    """A running server, shared by all tests that leave it as they found it."""
    with short_directory() as root, running_server(root, shared) as installation:
        yield installation


@pytest.fixture
def server_environment(server: Installation, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """Makes this test's process a client of `server`, for tests that use the SDK without the command line."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@dataclass(frozen=True)
class Snapshot:
    """What a server could leave behind, as it is now."""

    processes: frozenset[int]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    interfaces: frozenset[str]


def descendants(besides: frozenset[int] = frozenset()) -> dict[int, str]:
    """The live processes below this one: pid to command line. Zombies do not count: they hold nothing.

    Those in `besides` are left out with all below them: another test's server may start what it needs at any time. So
    is the process by which this one's `multiprocessing` keeps its books: it comes with the first use, and stays.
    """
    books: int | None = resource_tracker._resource_tracker._pid
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z" and int(entry.name) != books:
                parents[int(entry.name)] = int(parent)
    found: dict[int, str] = {}
    for pid in parents:
        above = pid
        while above in parents and above != os.getpid() and above not in besides:
            above = parents[above]
        if above == os.getpid() and pid != above:
            try:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:
                continue
    return found


def open_descriptors() -> set[tuple[str, str]]:
    """The open descriptors of this process, and what each of them is.

    Compare what is open afterwards with what was open before, never how many they are: other tests of this process may
    have left something that is closed at any time.
    """
    found: set[tuple[str, str]] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            continue  # that of the listing itself, or closed just now
    return found


def snapshot(root: Path) -> Snapshot:
    """The processes, mounts, cgroups and network interfaces there are. Namespaces need no look of their own: one lives
    only as long as a process or a mount holds it."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return Snapshot(
        processes=frozenset(descendants()),
        mounts=frozenset(mount for mount in mounts if str(root) in mount),
        cgroups=frozenset(
            directory
            for directory, _, _ in os.walk("/sys/fs/cgroup")
            if f"farcall-{cgroup_name(root / 'state' / 'launcher')}" in directory
        ),
        interfaces=frozenset(
            name
            for name in os.listdir("/sys/class/net")
            # Lines to workers that the tests of another process have laid are that one's.
            if not name.startswith("fw") or name.startswith(f"fw{os.getpid() % 100000}.")
        ),
    )


def leftovers(root: Path, before: Snapshot, within: float = SETTLE_SECONDS) -> list[str]:
    """What is there now and was not `before`, one line each, after at most `within` seconds for it to go."""
    deadline = time.monotonic() + within
    while True:
        now = snapshot(root)
        left = [f"process {pid}: {command}" for pid, command in sorted(descendants(before.processes).items())]
        left += [f"mount: {mount}" for mount in sorted(now.mounts - before.mounts)]
        left += [f"cgroup: {directory}" for directory in sorted(now.cgroups - before.cgroups)]
        left += [f"network interface: {name}" for name in sorted(now.interfaces - before.interfaces)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)
