"""The embedded server in bad company: rivals, leftovers of dead ones, other versions, peers that say nothing."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from farcall.settings import paths
from tests.conftest import Installation

HELLO = """\
import farcall, sys
app = farcall.App("hello")
@app.function()
def double(x):
    return 2 * x
@app.function()
def nap(seconds):
    import time
    time.sleep(seconds)
    return seconds
if __name__ == "__main__":
    with app.run():
        print(double.remote(21), flush=True)
        for line in sys.stdin:
            print(eval(line), flush=True)
"""


_numbers = itertools.count()


class Program:
    """The program, run by a process of its own. It evaluates what it is told."""

    def __init__(self, installation: Installation, *prelude: str) -> None:
        number = next(_numbers)
        path = installation.root / f"hello{number}.py"
        path.write_text(HELLO)
        code = "\n".join([*prelude, "import runpy, sys", f"runpy.run_path({str(path)!r}, run_name='__main__')"])
        launcher = installation.root / f"launch{number}.py"
        launcher.write_text(code)
        self._process = subprocess.Popen(
            [sys.executable, str(launcher) if prelude else str(path)],
            env=installation.environment,
            cwd=installation.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        return line or self.errors()

    def ask(self, expression: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{expression}\n")
        self._process.stdin.flush()
        return self.read()

    def errors(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read()

    def end(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture
def socket_path(installation: Installation) -> Path:
    return paths(installation.environment).server_socket


@pytest.fixture
def log_path(installation: Installation) -> Path:
    return paths(installation.environment).server_log


def server_pid(installation: Installation) -> int:
    code = "from farcall.sdk import client\nprint(client.connect_existing().status().pid)"
    found = subprocess.run(
        [sys.executable, "-c", code], env=installation.environment, capture_output=True, text=True, check=True
    )
    return int(found.stdout)


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether nothing of it holds a socket any more: its last thread has ended."""
    process = Path(f"/proc/{pid}")
    try:
        is_zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return is_zombie and len(os.listdir(process / "task")) == 1
    except OSError:
        return True


def test_programs_that_start_together_share_one_server(installation: Installation) -> None:
    with ThreadPoolExecutor(3) as pool:
        programs = [future.result() for future in [pool.submit(Program, installation) for _ in range(3)]]
    assert [program.read() for program in programs] == ["42"] * 3
    assert "3 apps" in installation.farcall("server", "status").stdout
    for program in programs:
        program.end()


def test_a_socket_that_a_dead_server_left_is_replaced(installation: Installation, socket_path: Path) -> None:
    socket_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(socket_path))
    program = Program(installation)
    assert program.read() == "42"
    program.end()


def test_a_killed_server_is_started_anew_by_the_next_call(installation: Installation) -> None:
    program = Program(installation)
    assert program.read() == "42"
    pid = server_pid(installation)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid), "the server lives")
    assert program.ask("double.remote(4)") == "8"
    program.end()


def test_variants_of_a_killed_server_s_apps_are_known_to_the_next(installation: Installation) -> None:
    """A spawned call of a variant survives, and a variant that was used before can be called again."""
    program = Program(installation)
    assert program.read() == "42"
    assert program.ask("double.with_options(timeout=77).remote(4)") == "8"
    call_id = program.ask("nap.with_options(timeout=78).spawn(1.5).object_id")
    pid = server_pid(installation)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid), "the server lives")
    assert program.ask("double.with_options(timeout=77).remote(5)") == "10"
    assert program.ask(f"farcall.FunctionCall.from_id({call_id!r}).get(timeout=30)") == "1.5"
    program.end()


def test_a_server_that_dies_while_it_starts_is_an_error_that_shows_its_log(installation: Installation) -> None:
    """It is killed as soon as it exists, each time."""
    program = Program(
        installation,
        "import subprocess",
        "real = subprocess.Popen",
        "def popen(*args, **kwargs):",
        "    process = real(*args, **kwargs)",
        "    if 'farcall.server.main' in str(args):",
        "        process.kill()",
        "    return process",
        "subprocess.Popen = popen",
    )
    said = program.read()
    assert "ConnectionError" in said
    assert "ended while starting" in said
    program.end()
    later = Program(installation)
    assert later.read() == "42"
    later.end()


def bound(installation: Installation) -> int:
    """A setting of the server."""
    return json.loads(installation.farcall("server", "status", "--json").stdout)["queue_inputs"]


def test_an_idle_server_of_another_version_is_replaced(installation: Installation) -> None:
    given = {"FARCALL_QUEUE_INPUTS": "77", "FARCALL_APP_QUEUE_INPUTS": "77"}
    given["FARCALL_SERVER_FLAGS"] = ",".join(given)  # as `farcall server start --queue-inputs 77` does
    subprocess.run(
        [
            sys.executable,
            "-c",
            "from farcall.sdk import embedded, starting\n"
            "older = 'import farcall.version as v; v.__version__ = \"0.0.0\"\\nfrom {module}'\n"
            "starting._PROGRAM = starting._PROGRAM.replace('from {module}', older)\n"
            "embedded.start_server()\n",
        ],
        env=installation.environment | given,
        check=True,
    )
    before = server_pid(installation)
    program = Program(installation)
    assert program.read() == "42"
    wait_until(lambda: is_gone(before), "the older server goes on")
    assert "0.0.0" not in installation.farcall("server", "status").stdout
    program.end()
    # What that server was given on its command line holds for the one in its place, also after a crash; not after its
    # end in good order.
    assert bound(installation) == 77
    os.kill(server_pid(installation), signal.SIGKILL)
    installation.farcall("app", "list", "--all")  # which needs a server
    assert bound(installation) == 77
    installation.farcall("server", "stop")
    installation.farcall("app", "list", "--all")
    assert bound(installation) == 100_000


def test_a_client_of_another_version_is_refused_by_a_busy_server(installation: Installation) -> None:
    program = Program(installation)
    assert program.read() == "42"
    stranger = Program(installation, "import farcall.sdk.client as c", "c.__version__ = '99.0'")
    said = stranger.read()
    assert "VersionError" in said
    assert "this is 99.0" in said
    assert "server stop --force" in said
    stranger.end()
    assert program.ask("double.remote(5)") == "10"
    program.end()


def test_an_idle_server_ends_itself_and_a_busy_one_does_not(installation: Installation, socket_path: Path) -> None:
    installation.environment["FARCALL_IDLE_SECONDS"] = "0.5"
    program = Program(installation)
    assert program.read() == "42"
    pid = server_pid(installation)
    assert program.ask("nap.remote(2.5)") == "2.5"
    assert server_pid(installation) == pid
    program.end()
    wait_until(lambda: is_gone(pid), "the server goes on though it is idle")
    assert not socket_path.exists()


def test_a_peer_that_says_nothing_keeps_no_server_alive(installation: Installation, socket_path: Path) -> None:
    """It is ended after a while; until then everybody else is served."""
    installation.farcall("server", "start")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(socket_path))
        program = Program(installation)
        assert program.read() == "42"
        program.end()
        silent.settimeout(60)
        assert silent.recv(1) == b""
