"""Launcher and worker die; what must outlive them does, and what must not is gone."""

import asyncio
import os
import random
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from launcher_harness import PATIENCE, Rig, Running, cgroups_of, eventually, gone, make_runner

from farcall.errors import ConnectionError, ContainerCrashedError, ContainerStartError
from farcall.launcher import client as launcher_client
from farcall.launcher import journal
from farcall.launcher.client import LauncherClient
from farcall.launcher.messages import Exited
from farcall.launcher.process import LOCK_NAME
from farcall.launcher.worker_link import SOCKET_NAME
from farcall.spec.container import Interpreter

_SLEEPER = "print('up', flush=True); import time; time.sleep(600)"


def processes_below(state: Path) -> list[int]:
    """Live processes that were started for a state directory: launcher, janitor, intermediates."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if b"farcall.launcher" in command and os.fsencode(state) in command:
                found.append(int(name))
    return found


def inits_below(launcher: int) -> list[int]:
    """The containers' first processes, also those that are still making their container."""
    near = _children(launcher)
    below = [*near, *(pid for child in near for pid in _children(child))]
    return [pid for pid in below if _name(pid) == "farcall-init"]


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip()
    except OSError:
        return ""


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_killed_launcher_takes_its_containers_along(own_rig: Rig, start: str) -> None:
    containers = [own_rig.start("os.system('sleep 600 &'); " + _SLEEPER, start=start) for _ in range(3)]
    assert [container.read_line() for container in containers] == ["up"] * 3
    os.kill(own_rig.client.launcher_pid, signal.SIGKILL)
    own_rig.wait(own_rig.loss())
    assert all(gone(container.started.pidfd) for container in containers)
    with pytest.raises(ConnectionError):
        own_rig.wait(own_rig.client.list())
    eventually(lambda: processes_below(own_rig.state) == [], "all helpers of the launcher end with it")
    for container in containers:
        container.close()


def test_the_next_launcher_sweeps(own_rig: Rig) -> None:
    containers = [own_rig.start("open('/root/file', 'w'); " + _SLEEPER) for _ in range(3)]
    assert [container.read_line() for container in containers] == ["up"] * 3
    assert all(own_rig.area_of(container.id).is_dir() for container in containers)
    os.kill(own_rig.client.launcher_pid, signal.SIGKILL)
    own_rig.wait(own_rig.loss())
    own_rig.lost = False
    own_rig.connect()
    assert cgroups_of(own_rig.state) == []
    for name in ("journal", "containers", "trash"):
        assert list((own_rig.state / name).iterdir()) == []
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(own_rig.state) in line]
    assert own_rig.run("print(1)", container_id=containers[0].id).output == "1\n"
    for container in containers:
        container.close()


def test_sweep_kills_only_what_the_journal_means(tmp_path: Path) -> None:
    book = journal.Journal(tmp_path / "journal")
    with subprocess.Popen(["sleep", "600"]) as meant, subprocess.Popen(["sleep", "600"]) as other:
        book.write("ta-1", str(tmp_path / "containers/ta-1"), [], [meant.pid])
        entry = msgspec.json.decode((tmp_path / "journal/ta-1.json").read_bytes(), type=journal.Entry)
        entry.container_id = "ta-2"
        entry.processes = [journal.Process(other.pid, entry.processes[0].started - 1)]  # its pid, another's start
        (tmp_path / "journal/ta-2.json").write_bytes(msgspec.json.encode(entry))
        (tmp_path / "journal/ta-3.json").write_bytes(b'{"cut off')
        (tmp_path / "containers/ta-1/root").mkdir(parents=True)
        assert journal.Journal(tmp_path / "journal").sweep([], [tmp_path / "containers"]) == 2
        assert meant.wait(PATIENCE) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()
    assert list((tmp_path / "journal").iterdir()) == []
    assert list((tmp_path / "containers").iterdir()) == []


def test_containers_outlive_the_worker(own_rig: Rig, start: str) -> None:
    code = """
import array, socket
control, life = socket.socket(fileno=3), socket.socket(fileno=5)
assert control.recv(100) == b"first"
assert control.recv(100) == b""
print("worker gone", flush=True)
message, ancillary, _, _ = life.recvmsg(100, socket.CMSG_SPACE(4))
control = socket.socket(fileno=array.array("i", ancillary[0][2])[0])
control.send(b"again")
sys.exit(control.recv(1)[0])
"""
    container = own_rig.start(code, start=start)
    container.control.send(b"first")
    ended = own_rig.start("sys.exit(5)", start=start)
    assert gone(ended.started.pidfd)
    own_rig.client.close()
    container.control.close()
    assert container.read_line() == "worker gone"
    own_rig.connect()
    live, exits = own_rig.wait(own_rig.client.list())
    assert [found.container_id for found in live] == [container.id]
    ours, theirs = socket.socketpair()
    own_rig.wait(own_rig.client.reattach(container.id, theirs.fileno()))
    theirs.close()
    assert ours.recv(100) == b"again"
    ours.send(bytes([9]))
    assert gone(live[0].pidfd)
    os.close(live[0].pidfd)
    assert own_rig.wait(own_rig.exit_of(container.id)).exit_code == 9
    ours.close()
    container.close()
    # The other's exit was told to whichever worker was there to hear it, and to the next one until acknowledged.
    if ended.id not in own_rig.exits:
        assert [(exited.container_id, exited.exit_code) for exited in exits] == [(ended.id, 5)]
    ended.close()


def test_an_exit_is_kept_until_acknowledged(own_rig: Rig) -> None:
    container = own_rig.start("control = __import__('socket').socket(fileno=3); control.recv(1); sys.exit(4)")
    own_rig.client.close()
    container.control.close()
    assert gone(container.started.pidfd)
    for _ in range(2):
        own_rig.connect()
        _, exits = own_rig.wait(_exits(own_rig.client))
        assert [(exited.container_id, exited.exit_code) for exited in exits] == [(container.id, 4)]
        own_rig.client.close()
    own_rig.connect()
    own_rig.client.acknowledge(container.id)
    assert own_rig.wait(own_rig.client.list()) == ([], [])
    container.close()


async def _exits(client: LauncherClient) -> tuple[object, list[Exited]]:
    """The list once the launcher has noticed the end, which may be just after init is gone."""
    while True:
        live, exits = await client.list()
        for found in live:
            os.close(found.pidfd)
        if exits:
            return live, exits
        await asyncio.sleep(0)


def test_clients_that_start_a_launcher_at_once_share_it(tmp_path: Path) -> None:
    async def connect_all() -> list[object]:
        attempts = [LauncherClient.connect(tmp_path / "state", idle_seconds=2.0) for _ in range(4)]
        return await asyncio.gather(*attempts, return_exceptions=True)

    async def scenario() -> None:
        results = await connect_all()
        clients = [result for result in results if isinstance(result, LauncherClient)]
        assert len(clients) == 1
        assert len({type(result) for result in results}) == 2
        assert len(processes_below(tmp_path / "state")) <= 2 + 3  # losers of the race for the lock are just ending
        await clients[0].shutdown()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_a_launcher_that_is_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        connecting = asyncio.ensure_future(LauncherClient.connect(tmp_path))
        await asyncio.sleep(0)  # it has started one, and is not told that it listens before it is killed
        eventually(lambda: processes_below(tmp_path) != [], "a launcher is starting")
        found = processes_below(tmp_path)
        [pid] = [pid for pid in found if _parent(pid) not in found]  # its janitor may be there already
        os.kill(pid, signal.SIGKILL)
        client = await connecting
        assert client.launcher_pid != pid
        await client.shutdown()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_the_journal_waits_for_room(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    book = journal.Journal(tmp_path / "journal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # a write fails as it does on a full disk
    try:
        for name in ("ta-1", "ta-2"):
            book.write(name, "area", [], [])
        book.remove("ta-2")
        book.catch_up()
        assert list((tmp_path / "journal").iterdir()) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    book.catch_up()
    assert [entry.container_id for entry in book.entries()] == ["ta-1"]


def test_what_a_former_worker_asked_for_is_no_answer_to_the_next(own_rig: Rig) -> None:
    async def ask_and_go() -> None:
        asked = asyncio.ensure_future(own_rig.start_async(_SLEEPER))
        await asyncio.sleep(0)  # it has been sent
        own_rig.client.close()
        with pytest.raises(ConnectionError):
            await asked

    for _ in range(5):
        own_rig.wait(ask_and_go())
        own_rig.connect()
        own_rig.wait(own_rig.client.prepare(own_rig.interpreter))
        assert own_rig.run("print(1)").output == "1\n"
        eventually(lambda: cgroups_of(own_rig.state) == [], "its container has ended")


def test_an_init_that_is_killed_is_a_container_that_crashed(own_rig: Rig, start: str) -> None:
    """Whenever that happens: it runs already, or was killed while it was made."""

    def kill_first(launcher: int) -> None:
        eventually(lambda: inits_below(launcher) != [], "there is an init")
        os.kill(inits_below(launcher)[0], signal.SIGKILL)

    for _ in range(10):

        async def start_and_kill() -> Running:
            starting = asyncio.ensure_future(own_rig.start_async(_SLEEPER, start=start))
            await asyncio.to_thread(kill_first, own_rig.client.launcher_pid)
            return await starting

        try:
            container = own_rig.wait(start_and_kill())
        except ContainerCrashedError as error:
            assert "killed while it was made" in str(error)
        else:
            assert gone(container.started.pidfd)
            container.close()
        eventually(lambda: inits_below(own_rig.client.launcher_pid) == [], "it has ended")


def test_a_launcher_that_hangs_is_killed_when_it_is_to_end(own_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_client, "_END_SECONDS", 0.2)
    container = own_rig.start(_SLEEPER)
    os.kill(own_rig.client.launcher_pid, signal.SIGSTOP)
    with pytest.raises(ConnectionError, match="did not end, and was killed"):
        own_rig.wait(own_rig.client.shutdown())
    assert gone(container.started.pidfd)
    container.close()
    own_rig.connect()
    assert cgroups_of(own_rig.state) == []


def test_a_launcher_that_hangs_is_killed_when_it_does_not_greet(own_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_client, "_GREETING_SECONDS", 2.0)
    hung = own_rig.client.launcher_pid
    own_rig.client.close()
    os.kill(hung, signal.SIGSTOP)
    own_rig.connect()
    assert own_rig.client.launcher_pid != hung
    assert own_rig.run("print(1)").output == "1\n"


def test_one_launcher_for_a_state_directory(own_rig: Rig) -> None:
    command = [sys.executable, "-m", "farcall.launcher", "--state", str(own_rig.state)]
    assert subprocess.run(command, timeout=PATIENCE, check=False).returncode == 0
    assert int((own_rig.state / LOCK_NAME).read_text()) == own_rig.client.launcher_pid
    assert own_rig.run("print(1)").output == "1\n"


def test_ends_itself_when_idle(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = await LauncherClient.connect(tmp_path, idle_seconds=0.0)
        pidfd = os.pidfd_open(client.launcher_pid)
        client.close()
        assert await asyncio.to_thread(gone, pidfd)
        os.close(pidfd)

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
    assert not (tmp_path / SOCKET_NAME).exists()


def test_a_long_state_path(tmp_path: Path, interpreter: Interpreter) -> None:
    rig = Rig(tmp_path / ("long-" * 20) / ("path-" * 20), interpreter)
    assert rig.run("print(1)").output == "1\n"
    rig.close()


def test_a_template_that_is_killed_is_made_again(own_rig: Rig) -> None:
    own_rig.wait(own_rig.client.prepare(own_rig.interpreter))
    children = Path(f"/proc/{own_rig.client.launcher_pid}/task/{own_rig.client.launcher_pid}/children")
    pids = [int(pid) for pid in children.read_text().split()]
    [pid] = [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text() == "farcall-base\n"]
    living = own_rig.start(_SLEEPER)
    os.kill(pid, signal.SIGKILL)
    result = own_rig.run("print(1)")
    assert result.output == "1\n"
    own_rig.wait(own_rig.client.prepare(own_rig.interpreter))
    assert not own_rig.run("pass").started.notes
    own_rig.wait(own_rig.client.kill(living.id))  # it did not die with the template
    assert living.result().exited.killed_by_us


def test_without_a_template_containers_start_by_exec(own_rig: Rig, tmp_path: Path) -> None:
    runner = make_runner(tmp_path / "runner")
    (runner / "farcall/runner/main.py").write_text(
        "import threading\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        + (runner / "farcall/runner/main.py").read_text()
    )
    own_rig.interpreter = msgspec.structs.replace(own_rig.interpreter, runner_path=str(runner))
    with pytest.raises(ContainerStartError, match="1 threads were started"):
        own_rig.wait(own_rig.client.prepare(own_rig.interpreter))
    result = own_rig.run("print('by exec', flush=True); os._exit(0)")
    assert result.output == "by exec\n"
    assert "1 threads were started" in result.started.notes[0]


def test_a_runner_of_another_version_starts_by_exec(own_rig: Rig, tmp_path: Path) -> None:
    runner = make_runner(tmp_path / "runner")
    plan = runner / "farcall/launcher/plan.py"
    plan.write_text(plan.read_text().replace("    area_made: bool", "    newer: int\n    area_made: bool"))
    own_rig.interpreter = msgspec.structs.replace(own_rig.interpreter, runner_path=str(runner))
    result = own_rig.run("print(1)")
    assert result.output == "1\n"
    assert "another farcall version" in result.started.notes[0]


def test_killed_in_the_middle_of_starts(own_rig: Rig, rng: random.Random) -> None:
    for _ in range(8):

        async def start_and_kill() -> None:
            starts = [asyncio.ensure_future(own_rig.start_async(_SLEEPER, start=way)) for way in ("fork", "exec") * 3]
            await asyncio.sleep(rng.uniform(0, 0.06))
            os.kill(own_rig.client.launcher_pid, signal.SIGKILL)
            for started in await asyncio.gather(*starts, return_exceptions=True):
                if isinstance(started, Running):
                    assert gone(started.started.pidfd)
                    started.close()
                else:
                    assert isinstance(started, ConnectionError)

        own_rig.wait(start_and_kill())
        own_rig.wait(own_rig.loss())
        own_rig.lost = False
        own_rig.connect()
        assert cgroups_of(own_rig.state) == []
        assert list((own_rig.state / "containers").iterdir()) == []
        assert list((own_rig.state / "journal").iterdir()) == []
    own_pids = set(processes_below(own_rig.state))
    eventually(lambda: len(processes_below(own_rig.state)) == 2, f"launcher and janitor alone remain of {own_pids}")
