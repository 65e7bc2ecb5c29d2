"""Commands in containers that run: in all their namespaces and limits, on pipes or a terminal, until they or it end."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from launcher_harness import PATIENCE, Rig, Running, eventually

from farcall import errors
from farcall.launcher.messages import ExecEnded
from farcall.spec.container import Limits

SLEEP = "import time; print('up', flush=True); time.sleep(1000)"


class Ended(NamedTuple):
    code: int | None
    output: str
    errors: str
    signal: int | None = None


class Commands:
    """Runs commands in a container."""

    def __init__(self, rig: Rig, container: Running) -> None:
        self.rig = rig
        self.id = container.id
        self.ends: dict[int, ExecEnded] = {}
        self._news = asyncio.Event()
        rig.client.on_exec_end = self._on_end

    def start(self, *command: str, stdin: bytes = b"", **options: Any) -> tuple[int, int, int]:
        """Starts a command on pipes: its number, and where its output and errors are read."""
        pipes = [os.pipe() for _ in range(3)]
        try:
            os.write(pipes[0][1], stdin)
            streams = (pipes[0][0], pipes[1][1], pipes[2][1])
            exec_id, _ = self.rig.wait(self.rig.client.start_exec(self.id, command, streams=streams, **options))
        except BaseException:
            for fd in (pipes[1][0], pipes[2][0]):
                os.close(fd)
            raise
        finally:
            for fd in (*pipes[0], pipes[1][1], pipes[2][1]):
                os.close(fd)
        return exec_id, pipes[1][0], pipes[2][0]

    def run(self, *command: str, stdin: bytes = b"", **options: Any) -> Ended:
        exec_id, output, errors_ = self.start(*command, stdin=stdin, **options)
        texts = [self.read(output), self.read(errors_)]
        ended = self.end(exec_id)
        return Ended(ended.exit_code, *texts, ended.signal)

    def python(self, code: str, **options: Any) -> str:
        ended = self.run(sys.executable, "-c", code, **options)
        assert ended.code == 0, ended
        return ended.output

    def end(self, exec_id: int) -> ExecEnded:
        async def wait() -> ExecEnded:
            while exec_id not in self.ends:
                self._news.clear()
                await self._news.wait()
            return self.ends.pop(exec_id)

        return self.rig.wait(wait())

    def _on_end(self, ended: ExecEnded) -> None:
        self.ends[ended.exec_id] = ended
        self._news.set()

    def read(self, fd: int) -> str:
        data = b""
        try:
            while piece := os.read(fd, 65536):
                data += piece
        except OSError:  # a terminal that nobody has open any more
            pass
        os.close(fd)
        return data.decode()


@pytest.fixture
def commands(rig: Rig) -> Iterator[Commands]:
    container = rig.start(SLEEP, env={"FROM": "container"})
    assert container.read_line() == "up"
    yield Commands(rig, container)
    rig.wait(rig.client.kill(container.id))
    container.result()


def test_output_errors_input_and_exit_code(commands: Commands) -> None:
    assert commands.run("sh", "-c", "cat; echo wrong >&2; exit 7", stdin=b"given\n") == Ended(7, "given\n", "wrong\n")
    assert commands.run("sh", "-c", "kill -TERM $$") == Ended(None, "", "", signal.SIGTERM)
    assert commands.run("true") == Ended(0, "", "")


def test_environment_and_working_directory(commands: Commands) -> None:
    script = "echo $FROM $MINE; pwd"
    assert commands.run("sh", "-c", script).output == "container\n/root\n"
    assert commands.run("sh", "-c", script, environment={"MINE": "x"}, workdir="/tmp").output == "container x\n/tmp\n"


@pytest.mark.parametrize(
    ("command", "options", "code", "message"),
    [
        (("no-such-command",), {}, 127, "no-such-command: No such file or directory\n"),
        (("/etc/passwd",), {}, 126, "/etc/passwd: Permission denied\n"),
        (("true",), {"workdir": "/nowhere"}, 127, "/nowhere: No such file or directory\n"),
    ],
)
def test_what_cannot_be_executed_ends_as_a_shell_says(
    commands: Commands, command: tuple[str, ...], options: dict[str, str], code: int, message: str
) -> None:
    assert commands.run(*command, **options) == Ended(code, "", message)


CONFINEMENT = """
import os, json
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
namespaces = {name: os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))}
print(json.dumps([
    namespaces, open("/proc/self/cgroup").read(), os.getuid(), os.listdir("/"), os.getcwd(),
    {name: status[name].split() for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Uid", "Groups", "SigIgn")},
    __import__("resource").getrlimit(__import__("resource").RLIMIT_NOFILE),
    sorted(os.listdir("/proc/self/fd"))[:4],
]))
"""


def test_it_is_confined_as_the_container_is(rig: Rig) -> None:
    """Namespaces, cgroup, user, capabilities, seccomp, limits: what a command sees is what the runner sees."""
    container = rig.start(CONFINEMENT + "import time\nsys.stdout.flush()\ntime.sleep(1000)", limits=Limits(pids=123))
    runner = container.read_line()
    commands = Commands(rig, container)
    by_runner = json.loads(runner)
    by_command = json.loads(commands.python(CONFINEMENT))
    assert by_command[:-1] == by_runner[:-1]
    assert by_command[-1] == ["0", "1", "2", "3"]  # 3 is the listing's own
    rig.wait(rig.client.kill(container.id))
    container.result()


def test_a_terminal_of_the_containers_own(commands: Commands) -> None:
    code = (
        "import os; print(os.ttyname(0), os.get_terminal_size(), os.isatty(1), os.isatty(2), "
        "os.getpgrp() == os.tcgetpgrp(0))"
    )
    exec_id, leader = commands.rig.wait(
        commands.rig.client.start_exec(commands.id, [sys.executable, "-c", code], terminal=(12, 34))
    )
    shown = commands.read(leader)
    assert re.fullmatch(r"/dev/pts/\d+ os\.terminal_size\(columns=34, lines=12\) True True True\r\n", shown), shown
    assert commands.end(exec_id).exit_code == 0


def test_the_terminal_sends_signals(commands: Commands) -> None:
    """Job control works: Ctrl-C reaches what runs in front, and not the shell."""
    exec_id, leader = commands.rig.wait(
        commands.rig.client.start_exec(commands.id, ["sh", "-i"], environment={"PS1": "$ "}, terminal=(24, 80))
    )
    conversation = Conversation(leader)
    conversation.expect("$ ")
    conversation.say("sleep 1000\n")
    eventually(lambda: "sleep" in commands.run("sh", "-c", "cat /proc/*/comm 2>/dev/null").output, "sleep runs")
    conversation.say("\x03")
    conversation.expect("$ ")
    conversation.say("echo st$((1+1))ll; exit 5\n")
    conversation.expect("st2ll")
    assert commands.end(exec_id).exit_code == 5
    os.close(leader)


class Conversation:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.heard = ""

    def say(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.heard:
            assert time.monotonic() < deadline, self.heard
            self.heard += os.read(self.fd, 4096).decode()
        self.heard = self.heard.partition(text)[2]


def test_a_signal_reaches_all_of_its_process_group(commands: Commands) -> None:
    exec_id, output, errors_ = commands.start("sh", "-c", "sleep 1000 & echo up; wait")
    assert os.read(output, 100) == b"up\n"
    commands.rig.client.signal_exec(commands.id, exec_id, signal.SIGKILL)
    assert commands.end(exec_id).signal == signal.SIGKILL
    assert commands.read(output) + commands.read(errors_) == ""  # ends when the child has closed it, too
    commands.rig.client.signal_exec(commands.id, exec_id, signal.SIGKILL)  # ended: no error
    assert commands.run("echo", "on").output == "on\n"


def test_commands_end_with_their_container(rig: Rig) -> None:
    container = rig.start(SLEEP)
    container.read_line()
    commands = Commands(rig, container)
    exec_id, output, errors_ = commands.start("sleep", "1000")
    rig.wait(rig.client.kill(container.id))
    assert commands.end(exec_id).signal == signal.SIGKILL
    assert commands.read(output) + commands.read(errors_) == ""
    container.result()
    with pytest.raises(errors.NotFoundError, match=f"no container {container.id} runs here"):
        commands.start("true")


def test_many_at_once_leave_nothing(commands: Commands) -> None:
    started = [commands.start("sh", "-c", f"sleep 0.05; echo {number}") for number in range(20)]
    assert [commands.read(output) for _, output, _ in started] == [f"{number}\n" for number in range(20)]
    for exec_id, _, errors_ in started:
        assert commands.read(errors_) == ""
        assert commands.end(exec_id).exit_code == 0
    processes = commands.python(
        "import os; print([n for n in os.listdir('/proc') if n.isdigit() and n != str(os.getpid())])"
    )
    assert eval(processes) == ["1", "2"]


def test_a_command_that_is_too_long_is_refused(commands: Commands) -> None:
    with pytest.raises(errors.InvalidError, match=r"the command is .* bytes, more than 61440"):
        commands.start("echo", "x" * 70_000)


def test_runtime_process(rig: Rig) -> None:
    container = rig.start(SLEEP, runtime="process")
    container.read_line()
    commands = Commands(rig, container)
    ended = commands.run("sh", "-c", "echo $HOME; touch /etc/mine")
    assert ended.output.strip().endswith("/root")
    assert ended.code == 1 or os.path.exists("/etc/mine") is False
    rig.wait(rig.client.kill(container.id))
    container.result()


def test_what_containers_use(rig: Rig) -> None:
    code = "data = bytearray(64 * 2**20); total = 0\nfor n in range(3_000_000): total += n\nprint('up', flush=True)\n"
    container = rig.start(code + "import subprocess; subprocess.run(['sleep', '1000'])")
    idle = rig.start(SLEEP)
    assert container.read_line() == idle.read_line() == "up"
    eventually(lambda: rig.wait(rig.client.measure([container.id]))[container.id].processes == 3, "three processes")
    usages = rig.wait(rig.client.measure([container.id, idle.id, "ta-unknown"]))
    assert set(usages) == {container.id, idle.id}
    busy = usages[container.id]
    assert 64 * 2**20 < busy.memory < 200 * 2**20
    assert usages[idle.id].memory < 40 * 2**20
    assert 0.05 < busy.cpu < 30
    assert usages[idle.id].processes == 2
    for each in (container, idle):
        rig.wait(rig.client.kill(each.id))
        each.result()
