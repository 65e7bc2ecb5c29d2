"""Conformance: each line of the semantics that farcall promises, through real containers.

All modules share one server. A module's `app`, imported from its program in `programs/`, runs while its tests do: the
programs are what a user writes, and containers import them alone, without the tests.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from farcall.sdk import client as clients
from farcall.wire import messages
from tests.cluster.machines import cluster
from tests.conftest import running_server, short_directory
from tests.link.conftest import server_over_ssh

if TYPE_CHECKING:
    from tests.conftest import Installation

PROGRAMS = Path(__file__).parent / "programs"
sys.path.insert(0, str(PROGRAMS))


@pytest.fixture(scope="session")
def session_server(request: pytest.FixtureRequest, shared: Path) -> "Iterator[Installation]":
    """A running server, shared by all modules: on this machine; with `--over ssh`, on one that ssh reaches; with
    `--over workers`, here, and all containers on two workers that have joined it."""
    with short_directory() as root:
        over = request.config.getoption("--over")
        if over is None:
            with running_server(root, shared) as installation:
                yield installation
        elif over == "workers":
            with cluster(root, shared) as made:
                yield made.server
        else:
            with server_over_ssh(root, shared) as away:
                away.near.farcall("server", "start", timeout=300)
                yield away.near


@pytest.fixture(scope="session", autouse=True)
def no_defects(session_server: "Installation") -> Iterator[None]:
    """Whatever the tests do to it, the server has no error of its own to report."""
    away = "FARCALL_SERVER" in session_server.environment
    state = session_server.root.parent / "box" / "far" if away else session_server.root / "state"
    yield
    for name in ("server.log", "launcher/launcher.log", "link.log"):
        log = state / name
        text = log.read_text() if log.exists() else ""
        assert "Traceback" not in text, text
        # One that is started while another ends says "not serving"; its client tries again.
        assert not [line for line in text.splitlines() if " ERROR " in line and "not serving" not in line], text


@pytest.fixture(scope="module", autouse=True)
def connected(session_server: "Installation") -> "Iterator[Installation]":
    """Makes this process a client of the server for the time of one module."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in session_server.environment.items():
            patch.setenv(name, value)
        yield session_server
        clients.current().close()


@pytest.fixture(scope="module", autouse=True)
def app_runs(request: pytest.FixtureRequest, connected: "Installation") -> Iterator[None]:
    """Runs the module's app."""
    app: Any = getattr(request.module, "app", None)
    if app is None:
        yield
        return
    with app.run():
        yield


def said(reference: str) -> list[str]:
    """The lines that a call, or all calls of an app, have printed so far."""
    client = clients.current()
    texts: list[str] = []

    def listen(message: messages.LogBatch | messages.AppStats) -> None:
        if isinstance(message, messages.LogBatch):
            texts.extend(entry.text for entry in message.entries if entry.stream == "stdout")

    before, client.on_entries = client.on_entries, listen
    try:
        client.request(lambda seq: messages.ReadLogs(seq, reference))
    finally:
        client.on_entries = before
    return "".join(texts).splitlines()


def until_it_says(reference: str, line: str = "started", times: int = 1) -> None:
    """Waits until a call, or an app, has printed a line so often: then it has come that far, which no length of time
    could tell."""
    deadline = time.monotonic() + 30
    while (lines := said(reference)).count(line) < times:
        assert time.monotonic() < deadline, f"{reference} did not say {line!r} {times} times, but {lines}"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def out_of_memory() -> type[Exception]:
    """What going over the memory limit is: where no cgroup can be written, the limit is approximated and Python itself
    says MemoryError."""
    from farcall.doctor import cgroups
    from farcall.errors import OutOfMemoryError

    enforced = any(one.name == "memory controller" and one.status == "ok" for one in cgroups.probe())
    return OutOfMemoryError if enforced else MemoryError


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a program to a file of its own."""
    import textwrap

    count = 0

    def write(text: str, name: str = "") -> Path:
        nonlocal count
        count += 1
        path = tmp_path / (name or f"program_{count}.py")
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits until a condition holds: for what happens by itself, with nobody to be told."""

    def wait(condition: Callable[[], Any], within: float = 30.0) -> None:
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, f"{condition} did not come true within {within:.0f} s"
            time.sleep(0.02)

    return wait
