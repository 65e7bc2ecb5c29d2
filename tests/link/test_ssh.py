"""A server on another machine, through the system's ssh and a real sshd."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Installation
from tests.link.box import Box
from tests.link.conftest import Away

pytestmark = pytest.mark.timeout(600)  # the first one installs farcall, from a package index

PROGRAM = """
import os
from pathlib import Path

import farcall
from words import shout

app = farcall.App("there", image=farcall.Image.host().add_local_python_source("words"))


@app.function()
def where(x):
    print("in", os.environ.get("FARCALL_CONTAINER_ID") and "a container")
    return shout("here"), x


@app.function()
def size(data):
    return len(data), data[-1:]


@app.function()
def twice(x):
    return 2 * x


@app.function()
def count(n):
    yield from range(n)


@app.function()
def broken():
    raise ValueError("on purpose")


@app.local_entrypoint()
def main():
    print(where.remote(3))
    print(size.remote(bytes(20_000_000) + b"!"))
    print(sum(twice.map(range(500))))
    print(list(count.remote_gen(5)))
    call = twice.spawn(21)
    print(farcall.FunctionCall.from_id(call.object_id).get())
    try:
        broken.remote()
    except ValueError as error:
        print("caught", error)
"""


@pytest.fixture(scope="module")
def program(away: Away) -> Path:
    away.program("words.py", "def shout(text):\n    return text.upper()\n")
    return away.program("there.py", PROGRAM)


def test_a_program_runs_there_and_farcall_is_installed_on_the_way(away: Away, program: Path) -> None:
    def is_stopped() -> bool:
        status = away.near.farcall("server", "status", "--json", check=False)
        return status.returncode == 3 and json.loads(status.stdout) == {"state": "stopped"}

    assert is_stopped() and not away.box.processes()
    stopped = away.near.farcall("server", "stop")
    assert "does not run" in stopped.stderr and "installing" not in stopped.stderr
    assert not away.box.processes() and not (away.box.home / "data").exists()
    installed = away.box.home / "data" / "farcall" / "remote"
    for age, name in enumerate(("last", "runs", "old", "older")):
        (installed / name).mkdir(parents=True)
        os.utime(installed / name, (1e9 - age, 1e9 - age))
    running = subprocess.Popen([f"{installed}/runs/bin/python", "100"], executable=shutil.which("sleep"))
    first = away.near.farcall("run", program, timeout=400)
    assert first.stdout.splitlines() == [
        "in a container",
        "('HERE', 3)",
        "(20000001, b'!')",
        "249500",
        "[0, 1, 2, 3, 4]",
        "42",
        "caught on purpose",
    ]
    assert f"installing farcall on {away.box.url}, once" in first.stderr
    again = away.near.farcall("run", program)
    assert again.stdout == first.stdout
    assert "installing" not in again.stderr
    # Of what was installed there before, the last one stays, and what runs.
    running.kill()
    running.wait()
    [_] = set(os.listdir(installed)) - {"last", "runs"}
    # No server was started on this machine.
    assert not (away.near.root / "state" / "server.sock").exists()
    # To ask what the other one does starts none there.
    away.near.farcall("server", "stop", "--force")
    assert is_stopped() and is_stopped()


def test_two_commands_at_once_make_one_link(away: Away, program: Path) -> None:
    away.near.farcall("server", "stop", "--force")
    before = away.box.connections()
    command = [sys.executable, "-m", "farcall", "run", program]
    running = [
        subprocess.Popen(
            command, env=away.near.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert all("249500" in each.communicate(timeout=400)[0] for each in running)
    assert away.box.connections() == before + 1


def test_links_of_several_installations_end_with_the_server(away: Away, program: Path) -> None:
    away.near.farcall("run", program, timeout=400)
    other = (
        "from farcall.interpreters import private\n"
        "private.source = lambda: 'another installation'\n"
        "from farcall.sdk import client\n"
        "client.connect_or_start()\n"
    )
    subprocess.run([sys.executable, "-c", other], env=away.near.environment, check=True, timeout=100)
    sockets = [path.with_suffix("") for path in (away.near.root / "state").glob("l-*.lock")]
    assert sum(path.exists() for path in sockets) == 2
    away.near.farcall("server", "stop", "--force")
    assert not any(path.exists() for path in sockets)


def test_another_version_stops_the_server_and_installs_nothing(away: Away, program: Path) -> None:
    """Nor does it start one, to stop it."""
    away.near.farcall("run", program, timeout=400)
    folder = away.box.home / "data" / "farcall" / "remote"
    installed = sorted(os.listdir(folder))
    other = (
        "import sys\n"
        "from farcall.interpreters import private\n"
        "private.source = lambda: 'another installation'\n"
        "from farcall.cli.main import main\n"
        "sys.exit(main())\n"
    )
    for word in ("has stopped", "does not run"):
        command = [sys.executable, "-c", other, "server", "stop"]
        done = subprocess.run(command, env=away.near.environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0 and word in done.stderr and "installing" not in done.stderr, done.stderr
        assert not any("farcall.server" in one for one in away.box.processes().values())
    assert sorted(os.listdir(folder)) == installed


def test_a_server_there_is_started_with_flags(away: Away, program: Path) -> None:
    away.near.farcall("run", program, timeout=400)
    refused = away.near.farcall("server", "start", "--queue-inputs", "4321", check=False)
    assert refused.returncode not in (0, 2) and "runs already" in refused.stderr
    away.near.farcall("server", "stop", "--force")
    away.near.farcall("server", "start", "--queue-inputs", "4321")
    assert json.loads(away.near.farcall("server", "status", "--json").stdout)["queue_inputs"] == 4321
    away.near.farcall("server", "stop", "--force")


def test_a_stop_that_is_refused_leaves_the_link_to_who_uses_it(away: Away) -> None:
    program = away.program("long.py", LONG)
    command = [sys.executable, "-m", "farcall", "run", str(program)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=away.near.environment, stdin=pipe, stdout=pipe, text=True) as running:
        assert running.stdin is not None and running.stdout is not None
        assert any("begun" in line for line in running.stdout)
        refused = away.near.farcall("server", "stop", check=False)
        assert refused.returncode not in (0, 2) and "--force" in refused.stderr
        out, _ = running.communicate("go on\n", timeout=100)
        assert running.returncode == 0 and out.endswith("4\n")


LONG = """
import farcall

app = farcall.App("long", image=farcall.Image.host())


@app.function()
def twice(x):
    return 2 * x


@app.local_entrypoint()
def main():
    print(twice.remote(1), "begun", flush=True)
    input()
    print(twice.remote(2))
"""


def test_an_edit_is_seen_there(away: Away, program: Path) -> None:
    away.program("words.py", "def shout(text):\n    return text + '!'\n")
    assert "('here!', 3)" in away.near.farcall("run", program).stdout
    away.program("words.py", "def shout(text):\n    return text.upper()\n")


def test_local_files_large_and_small_are_there(away: Away) -> None:
    folder = away.near.root / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "large").write_bytes(os.urandom(9_000_000))
    (folder / "empty").write_bytes(b"")
    for number in range(300):
        (folder / f"small-{number}").write_bytes(b"%d" % number * 50)
    program = away.program(
        "files.py",
        f"""
import hashlib, os
import farcall

app = farcall.App("files")
image = farcall.Image.host().add_local_dir({str(folder)!r}, "/data")


@app.function(image=image)
def digest():
    found = hashlib.sha256()
    for name in sorted(os.listdir("/data")):
        found.update(open(f"/data/{{name}}", "rb").read())
    return found.hexdigest()
""",
    )
    import hashlib

    expected = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        expected.update(path.read_bytes())
    assert away.near.farcall("run", program).stdout.strip() == expected.hexdigest()


def test_the_other_commands_are_about_that_machine(away: Away, program: Path) -> None:
    away.near.farcall("run", program)
    status = json.loads(away.near.farcall("server", "status", "--json").stdout)
    assert status["prefix"].startswith(str(away.box.home))
    assert str(away.box.home) in away.near.farcall("content", "stat").stdout
    assert "serving, pid" in away.near.farcall("server", "logs").stdout
    away.near.farcall("volume", "create", "box-volume")
    file = away.program("uploaded", "what is in it")
    away.near.farcall("volume", "put", "box-volume", file, "/uploaded")
    assert away.near.farcall("volume", "get", "box-volume", "/uploaded", "-").stdout == "what is in it"
    away.near.farcall("volume", "delete", "box-volume", "--yes")


def test_a_profile_stands_for_it(away: Away, program: Path) -> None:
    environment = dict(away.near.environment)
    del away.near.environment["FARCALL_SERVER"]
    try:
        away.near.farcall("profile", "add", "there", away.box.url)
        assert away.near.farcall("profile", "list").stdout.split() == ["there", away.box.url]
        assert "('HERE', 3)" in away.near.farcall("run", "--profile", "there", program).stdout
        status = json.loads(away.near.farcall("server", "status", "--profile", "there", "--json").stdout)
        assert status["prefix"].startswith(str(away.box.home))
        again = away.near.farcall("profile", "add", "there", away.box.url, check=False)
        assert again.returncode == 1
        assert "already" in again.stderr
    finally:
        away.near.environment = environment
        (away.near.root / "config" / "farcall" / "config.toml").unlink()


CUT = """
import sys
import farcall

app = farcall.App("cut", image=farcall.Image.host())


@app.function()
def wait(path):
    import os, time
    while not os.path.exists(path):
        time.sleep(0.01)
    return "waited"


@app.function()
def twice(x):
    return 2 * x


@app.local_entrypoint()
def main():
    calls = [twice.spawn(number) for number in range(5)]
    total = 0
    for number, result in enumerate(twice.map(range(3000))):
        total += result
        if number == 1000:
            print("cut now", flush=True)
            sys.stdin.readline()
    print(total, [call.get() for call in calls])
"""


@contextmanager
def in_the_middle_of_a_map(away: Away) -> Iterator[subprocess.Popen[str]]:
    """A program that has taken a third of a map's results. Behind the block it goes on, and must come to its end."""
    program = away.program("cut.py", CUT)
    running = subprocess.Popen(
        [sys.executable, "-m", "farcall", "run", program],
        env=away.near.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdin is not None
    assert running.stdout is not None
    assert running.stdout.readline() == "cut now\n"
    yield running
    out, err = running.communicate("\n", timeout=120)
    assert (running.returncode, out) == (0, "8997000 [0, 2, 4, 6, 8]\n"), err


def said(running: subprocess.Popen[str], what: str) -> None:
    """Its user was told this of the connection, or is now."""
    assert running.stderr is not None
    line = "..."
    while line and not (line.startswith("the connection to ") and line.endswith(f" {what}\n")):
        line = running.stderr.readline()
    assert line, f"it ended without a word: {what}"


@pytest.mark.parametrize("seconds", [0, pytest.param(20, marks=pytest.mark.long)])
def test_a_cut_in_the_middle_of_a_map_loses_nothing(away: Away, seconds: float) -> None:
    before = away.box.connections()
    with in_the_middle_of_a_map(away) as running:
        away.box.cut()
        log = away.near.root / "state" / "link.log"
        while "not connected again" not in log.read_text().rpartition("was cut")[2]:
            assert running.poll() is None
        time.sleep(seconds)
        said(running, "is lost, reconnecting ...")
        away.box.mend()
        said(running, "is back")
    assert away.box.connections() > before + 1


@pytest.mark.long
def test_a_link_goes_on_though_farcall_was_removed_there_meanwhile(away: Away) -> None:
    """It is installed once more, for the connection that takes the place of the one that was cut."""
    [folder] = (Path(away.box.environment["XDG_DATA_HOME"]) / "farcall" / "remote").glob("[0-9]*")
    with in_the_middle_of_a_map(away) as running:
        folder.rename(folder.with_name("gone"))
        away.box.cut()
        away.box.mend()
        said(running, "is back")
    assert folder.exists()


@pytest.mark.long
def test_a_connection_on_which_nothing_comes_is_made_anew(away: Away) -> None:
    before = away.box.connections()
    with in_the_middle_of_a_map(away):
        frozen = away.box.freeze()
    try:
        assert away.box.connections() > before
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGKILL)


def test_the_end_of_the_other_end_is_a_lost_connection(away: Away, program: Path) -> None:
    flag = away.near.root / "never"
    lost = away.program("lost.py", CUT.replace("def main():", f"def main():\n    wait.remote({str(flag)!r})"))
    running = subprocess.Popen(
        [sys.executable, "-m", "farcall", "run", lost],
        env=away.near.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not json.loads(away.near.farcall("container", "list", "--json").stdout):
        assert running.poll() is None
    [holder] = [pid for pid, command in away.box.processes().items() if command.endswith(" hold")]
    os.kill(holder, signal.SIGKILL)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 3, out
    assert "ConnectionLostError" in out or "connection" in out
    # Nothing of it goes on there, and the next call makes a link of its own.
    assert "249500" in away.near.farcall("run", program).stdout
    deadline = time.monotonic() + 60
    while json.loads(away.near.farcall("container", "list", "--json").stdout):
        assert time.monotonic() < deadline


def test_what_keeps_ssh_from_connecting_is_said_with_what_helps(box: Box, installation: Installation) -> None:
    program = installation.root / "hello.py"
    program.write_text(PROGRAM.replace("from words import shout", "").replace('.add_local_python_source("words")', ""))
    installation.environment |= {"FARCALL_SERVER": box.url, "FARCALL_SSH": box.ssh}

    def said(**environment: str) -> str:
        done = installation.farcall("run", program, check=False, **environment)
        assert done.returncode == 3 or done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    box.trust("stranger")
    assert "host key has changed" in said()
    status = installation.farcall("server", "status", check=False)
    assert "host key has changed" in status.stderr
    assert "@@@" not in status.stderr
    (box.root / "known").write_text("")
    assert "host key of ssh://box is not known here" in said()
    box.trust()
    box.configure("stranger")
    assert "lets nobody in with the keys at hand" in said()
    box.configure()
    (box.root / "cut").touch()
    assert "ssh://box cannot be reached" in said()
    box.mend()
    assert "no-such-ssh cannot be run" in said(FARCALL_SSH="no-such-ssh")
    assert "is no address" in said(FARCALL_SERVER="https://box")
    box.environment["PATH"] = str(tools(box, without="python3"))
    box.configure()
    assert "has no Python 3.11 or newer" in said()
    box.configure(greeting="This account is closed.")
    assert "ends each command at once (exit code 1): This account is closed." in said()


def tools(box: Box, without: str) -> Path:
    """A folder for PATH with everything that the system has but Python."""
    folder = box.root / "bin"
    folder.mkdir(exist_ok=True)
    for directory in ("/usr/bin", "/bin"):
        for path in Path(directory).iterdir():
            if not path.name.startswith(without) and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
    return folder
