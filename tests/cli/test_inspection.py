"""`farcall app, container, call, top`: what runs, as people and programs see it, and commands in containers."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Dialog
from tests.conftest import Installation

PROGRAM = """
import os, time
import farcall

app = farcall.App("watched")


@app.function(max_containers=1, scaledown_window=2)
def hold(path, seconds=1000.0):
    "Runs until there is a file at that path."
    with open("/tmp/began", "a") as file:
        file.write("x")
    deadline = time.monotonic() + seconds
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.02)
    return path


@app.function(memory=(128, 512), cpu=(0.25, 1.0), scaledown_window=1200)
def square(x):
    return x * x


@app.function()
def fail(x):
    raise ValueError(x)


@app.function()
def die():
    os._exit(3)


@app.function()
def forbidden():
    from farcall.sdk import client
    from farcall.wire import execs, inspection

    codes = []
    for make in (
        lambda seq: inspection.ListApps(seq),
        lambda seq: inspection.GetApp(seq, app.app_id or ""),
        lambda seq: inspection.ListContainers(seq),
        lambda seq: inspection.GetContainer(seq, os.environ["FARCALL_CONTAINER_ID"]),
        lambda seq: inspection.StopContainer(seq, os.environ["FARCALL_CONTAINER_ID"]),
        lambda seq: inspection.ListCalls(seq),
        lambda seq: inspection.GetCall(seq, "fc-x"),
        lambda seq: inspection.GetOverview(seq),
        lambda seq: execs.ExecCommand(seq, os.environ["FARCALL_CONTAINER_ID"], ["true"]),
    ):
        try:
            client.current().request(make)
            codes.append("answered")
        except farcall.errors.FarcallError as error:
            codes.append(error.code)
    return codes


if __name__ == "__main__":
    with app.run(detach=True):
        calls = {
            "held": hold.spawn("/tmp/release").object_id,
            "behind": hold.spawn_map(["/tmp/release"] * 3).object_id,
            "squared": square.spawn(12).object_id,
            "failed": fail.spawn(3).object_id,
            "died": die.spawn().object_id,
        }
        print(app.app_id, forbidden.remote(), *(f"{name}={call}" for name, call in calls.items()), sep="|")
"""


class Watched:
    """The app, detached: its id, and its calls by name."""

    def __init__(self, server: Installation, root: Path) -> None:
        program = root / "watched.py"
        program.write_text(PROGRAM)
        ended = subprocess.run(
            [sys.executable, str(program)], env=server.environment, capture_output=True, text=True, timeout=90
        )
        assert ended.returncode == 0, ended.stderr
        self.app_id, self.codes, *calls = ended.stdout.strip().split("|")
        self.calls = dict(call.split("=", 1) for call in calls)
        self._server = server

    def json(self, *arguments: str) -> Any:
        return json.loads(self._server.farcall(*arguments, "--json").stdout)

    def container_of(self, function: str) -> str:
        """The newest container of a function that is ready."""

        def find() -> list[str]:
            found = self.json("container", "list", "--app", self.app_id)
            return [one["container_id"] for one in found if one["function"] == function and one["state"] == "ready"]

        wait_until(find, f"{function} has a container")
        return find()[-1]

    def execute(self, container: str, *command: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [sys.executable, "-m", "farcall", "container", "exec", container, *command],
            env=self._server.environment,
            capture_output=True,
            timeout=60,
            **({"stdin": subprocess.DEVNULL} if "input" not in options else {}),
            **options,
        )

    def until_it_sleeps(self, container: str) -> None:
        """Waits for a `sleep` there: a signal that comes before the shell has executed it may reach nobody."""
        names = "cat /proc/[0-9]*/comm 2>/dev/null"
        wait_until(lambda: b"sleep" in self.execute(container, "sh", "-c", names).stdout, "sleep runs")


def wait_until(condition: Callable[[], Any], what: str, within: float = 90.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within:.0f} s: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def watched(server: Installation) -> Iterator[Watched]:
    watched = Watched(server, server.root)
    for call, state in (("squared", "done"), ("failed", "failed"), ("died", "failed")):
        wait_until(lambda: watched.json("call", "get", watched.calls[call])["state"] == state, f"{call} is {state}")  # noqa: B023
    watched.container_of("hold")
    wait_until(lambda: watched.json("app", "status", watched.app_id)["running"] == 1, "the held one runs")
    yield watched
    server.farcall("app", "stop", watched.app_id, "--force")


# --- apps


APP_KEYS = {
    *("app_id", "name", "state", "created_at", "stopped_at", "functions", "containers"),
    *("running", "waiting", "done", "failed"),
}
FUNCTION_KEYS = {
    *("function_id", "name", "is_class", "containers", "starting", "running", "waiting", "mean_seconds"),
}
CONTAINER_KEYS = {
    *("container_id", "app_id", "app", "function", "state", "created_at", "running", "queued", "done"),
    *("cpu_seconds", "memory_bytes", "processes", "worker"),
}
CALL_KEYS = {
    *("call_id", "kind", "app_id", "app", "function", "state", "created_at", "finished_at"),
    *("inputs", "finished", "failed"),
}
INPUT_KEYS = {
    *("call_id", "index", "function", "state", "attempts", "container_id", "running_seconds", "finished_at", "error"),
}


def test_app_list_and_status(server: Installation, watched: Watched) -> None:
    (listed,) = watched.json("app", "list")
    assert set(listed) == APP_KEYS
    assert (listed["name"], listed["state"], listed["functions"], listed["stopped_at"]) == (
        "watched",
        "detached",
        5,
        None,
    )
    assert (listed["running"], listed["waiting"], listed["failed"]) == (1, 3, 2)
    started = datetime.fromisoformat(listed["created_at"])
    assert 0 < time.time() - started.timestamp() < 300
    heading, line = server.farcall("app", "list").stdout.splitlines()
    assert heading.split() == ["APP", "NAME", "STATE", "STARTED", "FUNCTIONS", "CONTAINERS", "RUNNING", "WAITING"]
    assert line.split()[:3] == [watched.app_id, "watched", "detached"]

    status = watched.json("app", "status", "watched")
    assert set(status) == APP_KEYS
    assert {one["name"]: (one["running"], one["waiting"]) for one in status["functions"]} == {
        "hold": (1, 3),
        "square": (0, 0),
        "fail": (0, 0),
        "die": (0, 0),
        "forbidden": (0, 0),
    }
    assert all(set(one) == FUNCTION_KEYS for one in status["functions"])
    assert all(set(one) == CONTAINER_KEYS for one in status["containers"])
    shown = server.farcall("app", "status", watched.app_id).stdout
    assert "1 running, 3 waiting" in shown
    assert re.search(r"^hold +1 +0 +1 +3 ", shown, re.MULTILINE)


def test_apps_that_stopped_and_names_that_are_wrong(server: Installation, watched: Watched) -> None:
    program = server.root / "short.py"
    program.write_text("import farcall\napp = farcall.App('short')\n@app.function()\ndef f(): pass\n")
    server.farcall("run", str(program))
    assert "short" not in server.farcall("app", "list").stdout
    (ended,) = [one for one in watched.json("app", "list", "--all") if one["name"] == "short"]
    assert (ended["state"], ended["containers"]) == ("stopped", 0)
    assert ended["stopped_at"] > ended["created_at"]
    assert "its logs: farcall logs ap-" in server.farcall("app", "status", "short").stdout
    for command in ("status", "stop"):
        wrong = server.farcall("app", command, "wached", check=False)
        assert wrong.returncode == 1
        assert "no app 'wached'" in wrong.stderr
        assert "did you mean 'watched'?" in wrong.stderr
    wrong = server.farcall("app", "status", "quite another", check=False)
    assert re.search("there are: .*short, watched$", wrong.stderr.strip())
    assert "ap-" not in wrong.stderr


# --- containers


def test_container_list_and_inspect(server: Installation, watched: Watched) -> None:
    container = watched.container_of("hold")
    shown = server.farcall("container", "list").stdout.splitlines()
    assert shown[0].split()[:5] == ["CONTAINER", "APP", "FUNCTION", "STATE", "STARTED"]
    assert any(line.split()[:4] == [container, "watched", "hold", "ready"] for line in shown)

    details = watched.json("container", "inspect", container)
    assert set(details) == CONTAINER_KEYS | {
        *("ended", "ended_at", "cpu", "memory_mib", "python", "image_id", "runtime", "notes", "inputs", "timeline"),
    }
    assert (details["state"], details["ended"], details["ended_at"]) == ("ready", None, None)
    assert details["python"] == sys.executable
    (held,) = details["inputs"]
    assert set(held) == INPUT_KEYS
    assert (held["call_id"], held["state"]) == (watched.calls["held"], "running")
    assert held["running_seconds"] > 0
    steps = [one["step"] for one in details["timeline"]]
    times = [one["seconds"] for one in details["timeline"]]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] < 60
    assert steps[0] == "asked"
    assert steps[-1] == "ready"
    assert {"born", "namespaces", "runner", "hello", "load"} <= set(steps)
    text = server.farcall("container", "inspect", container).stdout
    assert f"{watched.calls['held']} input 0  running for" in text

    limits = watched.json("container", "inspect", watched.container_of("square"))
    assert limits["cpu"] == {"request": 0.25, "limit": 1.0}
    assert limits["memory_mib"] == {"request": 128, "limit": 512}
    assert limits["done"] == 1


def test_a_container_that_ended_says_how(server: Installation, watched: Watched) -> None:
    (died,) = watched.json("call", "get", watched.calls["died"])["inputs_shown"]
    details = watched.json("container", "inspect", died["container_id"])
    assert (details["state"], details["ended"]) == ("gone", "exited with code 3")
    assert details["ended_at"] >= details["created_at"]
    assert "exited with code 3" in server.farcall("container", "inspect", died["container_id"]).stdout
    for command in (["inspect"], ["stop"]):
        missing = server.farcall("container", *command, "ta-none", check=False)
        assert missing.returncode == 1
        assert "container ta-none" in missing.stderr


def test_what_is_of_one_app_only(server: Installation, watched: Watched) -> None:
    assert {one["app"] for one in watched.json("container", "list", "--app", "watched")} == {"watched"}
    assert server.farcall("container", "list", "--app", "none", check=False).returncode == 1


# --- commands


def test_exec_passes_on_streams_and_exit_code(watched: Watched) -> None:
    container = watched.container_of("square")
    ended = watched.execute(container, "sh", "-c", "cat; echo wrong >&2; exit 7", input=b"given")
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, b"given", b"wrong\n")
    assert watched.execute(container, "sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL
    missing = watched.execute(container, "no-such-command")
    assert (missing.returncode, missing.stderr) == (127, b"no-such-command: No such file or directory\n")
    assert watched.execute(container, "--", "echo", "--env").stdout == b"--env\n"


def test_exec_has_the_containers_environment(watched: Watched) -> None:
    container = watched.container_of("square")
    script = "echo $FARCALL_CONTAINER_ID $MINE; pwd; python -c 'import sys; print(sys.executable)'"
    ended = watched.execute("--env", "MINE=a=b", "--workdir", "/tmp", container, "sh", "-c", script)
    assert ended.stdout.decode().splitlines() == [f"{container} a=b", "/tmp", sys.executable]


def test_exec_carries_much_in_both_directions(watched: Watched) -> None:
    data = os.urandom(8 * 2**20)
    container = watched.container_of("square")
    assert (
        hashlib.sha256(watched.execute(container, "cat", input=data).stdout).digest() == hashlib.sha256(data).digest()
    )
    # One that takes none of it is not waited for.
    assert watched.execute(container, "true", input=data).returncode == 0


def test_exec_that_is_not_read_is_held_back(server: Installation, watched: Watched) -> None:
    """Output waits where it comes from: a command that writes for ever neither fills memory nor hangs anybody."""
    container = watched.container_of("square")
    process = subprocess.Popen(
        [sys.executable, "-m", "farcall", "container", "exec", container, "yes"],
        env=server.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(2**20)
    before = watched.json("container", "inspect", container)["cpu_seconds"]
    time.sleep(0.5)
    after = watched.json("container", "inspect", container)["cpu_seconds"]
    assert after - before < 0.2
    process.stdout.close()
    process.kill()
    process.wait()
    wait_until(lambda: watched.json("container", "inspect", container)["processes"] == 2, "it ended with its reader")


def test_signals_go_to_the_command(server: Installation, watched: Watched) -> None:
    container = watched.container_of("square")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "farcall", "container", "exec", container, "sh", "-c"),
            "trap 'kill $!; echo caught; exit 3' INT; echo ready; sleep 1000 & wait",
        ],
        env=server.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.read() == "caught\n"
    assert process.wait(30) == 3


def test_exec_on_a_terminal(server: Installation, watched: Watched) -> None:
    container = watched.container_of("square")
    dialog = Dialog(server.environment, "container", "exec", container, "sh", rows=30, columns=77)
    dialog.until("# ")
    dialog.say("tty; stty size; echo $TERM\r")
    dialog.until("/dev/pts/")
    dialog.until("30 77\r\n")
    dialog.say("sleep 1000\r")
    dialog.until("sleep 1000\r\n")
    watched.until_it_sleeps(container)
    dialog.say("\x03")  # goes to the container's terminal, and ends what runs in front there
    dialog.until("# ")
    dialog.resize(20, 66)
    dialog.say("stty size\r")
    dialog.until("20 66\r\n")
    dialog.say("exit 5\r")
    assert dialog.end() == 5


def test_what_is_typed_after_a_change_of_size_comes_after_it(server: Installation, watched: Watched) -> None:
    """Also where the signal of the change comes late, or here not at all."""
    container = watched.container_of("square")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
    try:
        dialog = Dialog(server.environment, "container", "exec", container, "sh", rows=30, columns=77)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGWINCH})
    dialog.until("# ")
    dialog.resize(20, 66)
    dialog.say("stty size\r")
    dialog.until("20 66\r\n")
    dialog.say("exit 3\r")
    assert dialog.end() == 3


def test_a_closed_terminal_ends_the_command(server: Installation, watched: Watched) -> None:
    container = watched.container_of("square")
    dialog = Dialog(server.environment, "container", "exec", container, "sh")
    dialog.until("# ")
    dialog.say("sleep 1000\r")
    dialog.until("sleep 1000\r\n")
    watched.until_it_sleeps(container)
    assert dialog.hang_up() != 0
    wait_until(lambda: watched.json("container", "inspect", container)["processes"] == 2, "it ended with its terminal")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["ta-none", "true"], 1, "no container ta-none runs here"),
        (["{square}"], 2, "there is no command to run"),
        (["--env", "x", "{square}", "true"], 2, "--env 'x' is not KEY=VALUE"),
        (["--pty", "{square}", "true"], 2, "--pty needs a terminal"),
        (["{square}", "echo", "x" * 70_000], 1, "the command is 7"),
    ],
)
def test_exec_that_cannot_be(
    server: Installation, watched: Watched, arguments: list[str], status: int, message: str
) -> None:
    words = [word.replace("{square}", watched.container_of("square")) for word in arguments]
    ended = server.farcall("container", "exec", *words, check=False)
    assert ended.returncode == status
    assert message in ended.stderr


# --- calls


def test_call_list_and_get(server: Installation, watched: Watched) -> None:
    calls = watched.json("call", "list", "--app", "watched")
    assert all(set(one) == CALL_KEYS for one in calls)
    assert [one["call_id"] for one in calls] == list(reversed(watched.calls.values()))  # newest first
    states = {name: next(one["state"] for one in calls if one["call_id"] == id_) for name, id_ in watched.calls.items()}
    assert states == {"held": "pending", "behind": "pending", "squared": "done", "failed": "failed", "died": "failed"}
    unfinished = watched.json("call", "list", "--unfinished")
    assert {one["call_id"] for one in unfinished} == {watched.calls["held"], watched.calls["behind"]}
    assert len(watched.json("call", "list", "--limit", "2")) == 2
    assert watched.calls["held"] in server.farcall("call", "list").stdout

    behind = watched.json("call", "get", watched.calls["behind"])
    assert set(behind) == CALL_KEYS | {"inputs_shown"}
    assert (behind["inputs"], behind["finished"], behind["function"]) == (3, 0, "hold")
    assert all(set(one) == INPUT_KEYS for one in behind["inputs_shown"])
    assert {one["state"] for one in behind["inputs_shown"]} <= {"waiting", "queued"}
    (held,) = watched.json("call", "get", watched.calls["held"])["inputs_shown"]
    assert (held["state"], held["container_id"]) == ("running", watched.container_of("hold"))
    (died,) = watched.json("call", "get", watched.calls["died"])["inputs_shown"]
    assert died["state"] == "failed"
    assert "container-crashed: die brought its container down" in died["error"]
    text = server.farcall("call", "get", watched.calls["died"]).stdout
    assert "1 of 1 inputs finished, 1 of them failed" in text


def test_results_of_calls(server: Installation, watched: Watched) -> None:
    assert server.farcall("call", "get", watched.calls["squared"], "--result").stdout == "144\n"
    assert watched.json("call", "get", watched.calls["squared"], "--result") == 144
    failed = server.farcall("call", "get", watched.calls["failed"], "--result", check=False)
    assert failed.returncode == 1
    assert "ValueError: 3" in failed.stderr
    for call_id, message in (("fc-none", "no call fc-none"), ("nonsense", "starts with fc-")):
        missing = server.farcall("call", "get", call_id, "--result", check=False)
        assert missing.returncode == 1
        assert message in missing.stderr


def test_calls_in_memory_are_shown_and_can_be_cancelled(server: Installation, watched: Watched) -> None:
    """`.remote` of another program: it is told."""
    program = server.root / "remote.py"
    program.write_text(
        "import time, farcall\napp = farcall.App('remote')\n@app.function()\ndef nap():\n    time.sleep(1000)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "farcall", "run", str(program)],
        env=server.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    calls: list[Any] = []

    def running() -> bool:
        calls[:] = watched.json("call", "list", "--unfinished")
        calls[:] = [one for one in calls if one["app"] == "remote"]
        return bool(calls) and watched.json("call", "get", calls[0]["call_id"])["inputs_shown"][0]["state"] == "running"

    wait_until(running, "the call runs")
    assert (calls[0]["kind"], calls[0]["function"], calls[0]["inputs"]) == ("remote", "nap", 1)
    server.farcall("call", "cancel", calls[0]["call_id"])
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"call {calls[0]['call_id']} was cancelled" in error
    missing = server.farcall("call", "cancel", "fc-none", check=False)
    assert missing.returncode == 1
    assert "no call fc-none" in missing.stderr


# --- everything at once


def test_top(server: Installation, watched: Watched) -> None:
    overview = watched.json("top")
    assert set(overview) == {
        *("state", "version", "uptime_seconds", "cores", "memory_bytes", "memory_available_bytes", "apps", "workers"),
    }
    assert overview["cores"] == os.cpu_count()
    (app,) = [one for one in overview["apps"] if one["app_id"] == watched.app_id]
    assert app == {**watched.json("app", "status", watched.app_id), "containers": app["containers"]}
    shown = server.farcall("top").stdout
    assert re.search(r"^watched +hold +1 +0 +1 +3 ", shown, re.MULTILINE)


def test_top_on_a_terminal(server: Installation, watched: Watched) -> None:
    dialog = Dialog(server.environment, "top", "--interval", "0.2", rows=8, columns=60)
    dialog.until("\x1b[?1049h")
    for _ in range(2):
        dialog.until("watched  hold")
        dialog.until("more")  # there are more lines than rows
    dialog.resize(40, 100)
    dialog.until("forbidden")
    dialog.say("q")
    assert dialog.end() == 0
    assert dialog.shown.endswith("\x1b[?1049l")
    lines = re.split(r"\r\n", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", dialog.shown))
    assert max(map(len, lines)) <= 100
    interrupted = Dialog(server.environment, "top")
    interrupted.until("watched")
    interrupted.say("\x03")
    assert interrupted.end() == 0
    assert interrupted.shown.endswith("\x1b[?1049l")


def test_code_in_containers_may_not_look(watched: Watched) -> None:
    assert watched.codes == str(["permission-denied"] * 9)


def test_without_a_server(installation: Installation) -> None:
    assert "no app runs" in installation.farcall("app", "list").stderr
    assert installation.farcall("app", "list", "--json").stdout == "[]\n"
    assert installation.farcall("container", "list", "--json").stdout == "[]\n"
    for arguments in (
        ["app", "status", "x"],
        ["app", "stop", "x"],
        ["container", "inspect", "ta-x"],
        ["container", "exec", "ta-x", "true"],
        ["call", "cancel", "fc-x"],
    ):
        ended = installation.farcall(*arguments, check=False)
        assert ended.returncode == 1
        assert "the farcall server does not run" in ended.stderr
    assert installation.farcall("top", check=False).returncode == 3
    assert json.loads(installation.farcall("top", "--json", check=False).stdout) == {"state": "stopped"}


# --- at the end, for it changes what the others look at


def test_stopped_containers_lose_no_input(server: Installation, watched: Watched) -> None:
    """What a stopped container ran is run again in another one; gracefully, it finishes first."""
    first = watched.container_of("hold")
    server.farcall("container", "stop", first)
    assert watched.json("container", "inspect", first)["ended"] == "stopped by hand; was ended by SIGKILL (Killed)"
    second = watched.container_of("hold")
    assert second != first
    wait_until(
        lambda: (
            [
                one["call_id"]
                for one in watched.json("container", "inspect", second)["inputs"]
                if one["state"] == "running"
            ]
            == [watched.calls["held"]]
        ),
        "the input runs again",
    )
    stopping = subprocess.Popen(
        [sys.executable, "-m", "farcall", "container", "stop", "--graceful", second], env=server.environment
    )
    wait_until(lambda: watched.json("container", "inspect", second)["state"] == "stopping", "it is to stop")
    assert stopping.poll() is None
    watched.execute(second, "touch", "/tmp/release")
    assert stopping.wait(30) == 0
    assert watched.json("container", "inspect", second)["ended"] == "stopped by hand; exited with code 0"
    assert server.farcall("call", "get", watched.calls["held"], "--result").stdout == "/tmp/release\n"
    third = watched.container_of("hold")
    watched.execute(third, "touch", "/tmp/release")
    wait_until(lambda: watched.json("call", "get", watched.calls["behind"])["state"] == "done", "the others are done")
