"""`farcall run` and `farcall logs` through a real server and real containers."""

import codecs
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import farcall.errors
from farcall.sdk.app import EXIT_GRACE
from tests.cli.conftest import Dialog, fork_on_terminal

PROGRAM = """
import os, sys, time
import farcall

app = farcall.App("program")


@app.function()
def square(x: int) -> int:
    print(f"squaring {x}")
    return x * x


@app.function()
def both(x: int = 1) -> None:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    print("\\x1b[31mred\\x1b[0m \\x1b[2Jcleared")


@app.function()
def fail() -> None:
    print("before it fails")
    raise ValueError("as it should")


@app.function()
def crash() -> None:
    os._exit(3)


@app.function()
def where() -> str:
    return sys.prefix


@app.function(max_containers=2)
def slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@app.cls()
class Stubborn:
    @farcall.method()
    def hang(self) -> None:
        print("hanging", flush=True)
        time.sleep(60)

    @farcall.method()
    def ready(self) -> None:
        print("ready", flush=True)

    @farcall.exit()
    def close(self) -> None:
        print("closing", flush=True)
        time.sleep(60)


@app.local_entrypoint()
def squares(count: int = 20):
    print(sum(square.map(range(count))))


@app.local_entrypoint()
def hang():
    print("local", flush=True)
    square.remote(2)
    print("ready", flush=True)
    slow.remote(60)


@app.local_entrypoint()
def stubborn():
    Stubborn().hang.remote()


@app.local_entrypoint()
def stubborn_when_idle():
    Stubborn().ready.remote()
    time.sleep(60)


@app.local_entrypoint()
def idle():
    square.remote(3)
    print("ready", flush=True)
    time.sleep(60)


@app.local_entrypoint()
def unnoticed(number: int):
    import signal, threading

    def take():
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), number)

    print("ready", flush=True)
    threading.Thread(target=take).start()
    time.sleep(60)


@app.local_entrypoint()
def spawned():
    print(slow.spawn(60).object_id)


@app.function()
def chatter() -> None:
    while True:
        print("more")
        time.sleep(0.1)


@app.local_entrypoint()
def left_behind():
    chatter.spawn()
    square.remote(1)


@app.local_entrypoint()
def slowly():
    for _ in slow.map([0.25] * 16):
        pass
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    return file


class Running:
    """A `farcall run` on its way."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.out = ""
        self.err = ""

    def until(self, text: str, within: float = 30.0) -> None:
        """Reads until `text` has come on stdout or stderr."""
        deadline = time.monotonic() + within
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        streams = {self.process.stdout: "out", self.process.stderr: "err"}
        while text not in self.out + self.err:
            ready, _, _ = select.select(list(streams), [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise AssertionError(f"{text!r} did not come\n--- stdout\n{self.out}\n--- stderr\n{self.err}")
            for stream in ready:
                piece = os.read(stream.fileno(), 65536).decode()
                setattr(self, streams[stream], getattr(self, streams[stream]) + piece)
                if not piece:
                    del streams[stream]

    def end(self, within: float = 30.0) -> int:
        out, err = self.process.communicate(timeout=within)
        self.out += out
        self.err += err
        return self.process.returncode


Start = Callable[..., Running]


@pytest.fixture
def start(server: Any, tmp_path: Path) -> Iterator[Start]:
    """Starts `farcall ARGUMENTS` and lets it run."""
    started: list[Running] = []

    def start(*arguments: str | Path) -> Running:
        process = subprocess.Popen(
            [sys.executable, "-m", "farcall", *map(str, arguments)],
            env=server.environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(Running(process))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.process.communicate()


def test_a_map_over_containers(server: Any, program: Path) -> None:
    done = server.farcall("run", f"{program}::squares", "--count", "20")
    lines = done.stdout.splitlines()
    assert sorted(lines) == sorted([*(f"squaring {x}" for x in range(20)), "2470"])
    assert re.search(r"^square: 20/20 done in ", done.stderr, re.MULTILINE)
    assert re.fullmatch(
        r"done in [\d.]+ .*s: 20 calls, \d+ containers?; .* starting, .* running", done.stderr.splitlines()[-1]
    )


def test_a_function_by_name_prints_its_result(server: Any, program: Path) -> None:
    done = server.farcall("run", "-q", f"{program}::square", "--x", "7")
    assert done.stdout == "squaring 7\n49\n"
    assert done.stderr == ""


def test_streams_are_kept_apart_and_control_sequences_are_not_shown(server: Any, program: Path) -> None:
    done = server.farcall("run", "-q", f"{program}::both")
    assert done.stdout == "to stdout\n\x1b[31mred\x1b[0m cleared\n"
    assert done.stderr == "to stderr\n"


def test_an_error_names_call_and_container_and_their_logs(server: Any, program: Path) -> None:
    done = server.farcall("run", f"{program}::fail", check=False)
    assert done.returncode == 1
    assert "in fail" in done.stderr
    assert "ValueError: as it should" in done.stderr
    assert "/farcall/" not in done.stderr
    found = re.search(
        r"^call (fc-\S+) in container (ta-\S+); its logs: farcall logs (fc-\S+)$", done.stderr, re.MULTILINE
    )
    assert found, done.stderr
    call, container, _ = found.groups()
    assert server.farcall("logs", call).stdout == "before it fails\n"
    assert server.farcall("logs", container).stdout == "before it fails\n"
    assert server.farcall("logs", call, "--grep", "nothing like it").stdout == ""
    assert server.farcall("logs", call, "--since", "1h").stdout == "before it fails\n"
    full = server.farcall("run", f"{program}::fail", check=False, FARCALL_TRACEBACK="full")
    assert "/farcall/" in full.stderr


def test_a_crash_is_named_exactly(server: Any, program: Path) -> None:
    done = server.farcall("run", f"{program}::crash", check=False)
    assert done.returncode == 1
    assert "exited with code 3" in done.stderr


def test_the_projects_interpreter_runs_in_the_container(server: Any, program: Path) -> None:
    venv = program.parent / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    done = server.farcall("run", f"{program}::where")
    assert done.stdout == f"{venv}\n"
    assert done.stderr.startswith(f"python: {venv}/bin/python (.venv)")


def test_without_a_terminal_a_map_tells_its_progress_in_lines(server: Any, program: Path) -> None:
    done = server.farcall("run", f"{program}::slowly")
    told = [line for line in done.stderr.splitlines() if line.startswith("slow: ")]
    assert 2 <= len([line for line in told if "/16 done" in line]) <= 11
    assert re.match(r"slow: 16/16 done in ", told[-1])


def test_a_module_brings_its_package(server: Any, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("VALUE = 42\n")
    (package / "program.py").write_text(
        textwrap.dedent(
            """
            import farcall
            from package.helper import VALUE
            app = farcall.App()
            @app.function()
            def value() -> int:
                import package.helper
                return package.helper.VALUE + VALUE
            """
        )
    )
    assert server.farcall("run", "-q", "-m", "package.program", cwd=tmp_path).stdout == "84\n"


@pytest.mark.parametrize("template", ["map", "class", "train"])
def test_what_init_writes_runs_in_containers(server: Any, tmp_path: Path, template: str) -> None:
    server.farcall("init", "--template", template, "made.py", cwd=tmp_path)
    done = server.farcall("run", "made.py", cwd=tmp_path)
    assert len(done.stdout.splitlines()) >= 3
    assert re.search(r"\d containers?;", done.stderr.splitlines()[-1])


def test_a_detached_app_goes_on_and_says_where_its_logs_are(installation: Any, program: Path) -> None:
    done = installation.farcall("run", "--detach", f"{program}::spawned")
    assert done.stdout.startswith("fc-")
    assert re.search(r"^(ap-\S+) goes on by itself; its logs: farcall logs \1$", done.stderr, re.MULTILINE)
    busy = installation.farcall("server", "stop", check=False)
    assert busy.returncode == 1
    assert "`farcall server stop --force` ends that too" in busy.stderr
    assert "has stopped" in installation.farcall("server", "stop", "--force").stderr


@pytest.mark.parametrize("entrypoint", ["idle", "hang"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupt_stops_all(
    start: Start, server: Any, program: Path, entrypoint: str, number: signal.Signals
) -> None:
    """Well before the time is over that exit hooks would be given."""
    running = start("run", f"{program}::{entrypoint}")
    running.until("ready")
    before = time.monotonic()
    running.process.send_signal(number)
    assert running.end() == 130
    assert time.monotonic() - before < EXIT_GRACE / 2
    assert "interrupted: stopping" in running.err
    assert "Traceback" not in running.err
    assert re.search(r"^interrupted in ", running.err.splitlines()[-1])
    assert "ephemeral" not in server.farcall("server", "status").stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupt_is_noticed_wherever_it_arrives(start: Start, program: Path, number: signal.Signals) -> None:
    """The kernel may give it to another thread, or to the main thread just before it sleeps: that sleep goes on."""
    running = start("run", f"{program}::unnoticed", "--number", str(int(number)))
    running.until("ready")
    assert running.end() == 130
    assert re.search(r"^interrupted in ", running.err.splitlines()[-1])


def test_apps_are_listed_and_stopped(server: Any, program: Path) -> None:
    done = server.farcall("run", "--detach", f"{program}::left_behind")
    app = re.search(r"^to end it: farcall app stop (ap-\S+)$", done.stderr, re.MULTILINE)
    assert app
    assert app[1] in server.farcall("app", "list").stdout
    assert server.farcall("app", "stop", "nope", check=False).returncode == 1
    stopped = server.farcall("app", "stop", "program")
    assert re.match(rf"stopped {app[1]} \(program\): \d containers?, 1 call cancelled$", stopped.stderr.strip())
    assert app[1] not in server.farcall("app", "list").stdout
    unknown = server.farcall("logs", "ap-nope", check=False)
    assert unknown.returncode == 1
    assert "nothing is kept of ap-nope" in unknown.stderr


def test_a_run_whose_reader_has_gone_ends(server: Any, program: Path) -> None:
    command = f"{sys.executable} -m farcall run {program}::squares --count 3000 2>err | head -n 1"
    done = subprocess.run(
        ["sh", "-c", command],
        env=server.environment,
        cwd=program.parent,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert re.match(r"squaring \d+\n", done.stdout)
    said = (program.parent / "err").read_text()
    assert "Traceback" not in said, said
    assert "Exception ignored" not in said, said
    assert "ephemeral" not in server.farcall("server", "status").stdout


@pytest.mark.parametrize("signals", [0, 2])
def test_a_reader_that_goes_ends_the_run_whatever_signals_come(server: Any, program: Path, signals: int) -> None:
    read, write = os.pipe()
    running = subprocess.Popen(
        [sys.executable, "-m", "farcall", "run", f"{program}::chatter"],
        env=server.environment,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        os.close(write)
        assert os.read(read, 1) == b"m"
        os.close(read)
        before = time.monotonic()
        for _ in range(signals):
            running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=30)
    finally:
        running.kill()
    assert "Traceback" not in said
    while "ephemeral" in server.farcall("server", "status").stdout:
        pass  # a run that was killed has not waited for the end of its app
    if not signals:
        assert time.monotonic() - before < EXIT_GRACE / 2
        assert running.returncode == 141
        assert "interrupted" not in said


def test_a_full_disk_under_the_output_ends_the_run(server: Any, program: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "farcall", "run", f"{program}::chatter"],
            env=server.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )
    assert done.returncode == 1
    assert done.stderr.endswith("farcall: cannot write the output: No space left on device\n")


def test_a_second_interrupt_kills(start: Start, server: Any, program: Path) -> None:
    running = start("run", f"{program}::stubborn")
    running.until("hanging")
    running.process.send_signal(signal.SIGINT)
    running.until("closing")
    before = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    assert running.end() == 130
    assert time.monotonic() - before < EXIT_GRACE / 2
    assert running.err.splitlines()[-1].startswith("killed in ")
    assert "ephemeral" not in server.farcall("server", "status").stdout


class OnTerminal:
    """A `farcall run` whose terminal is ours: what it writes is on `screen`, what is typed comes to it."""

    def __init__(self, screen: Any, environment: dict[str, str], folder: Path, *arguments: str) -> None:
        self.screen = screen
        self.pid, self.terminal = fork_on_terminal(environment, *arguments, rows=40, columns=120, folder=folder)
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def until(self, text: str, within: float = 30.0) -> None:
        """Reads until `text` is on the screen."""
        deadline = time.monotonic() + within
        while text not in "\n".join(self.screen.seen()):
            ready, _, _ = select.select([self.terminal], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} did not come:\n" + "\n".join(self.screen.seen())
            self.screen.write(self._decoder.decode(os.read(self.terminal, 65536)))

    def end(self) -> int:
        """Reads what is left and returns the exit code."""
        while True:
            try:
                piece = os.read(self.terminal, 65536)
            except OSError:
                break
            self.screen.write(self._decoder.decode(piece))
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_on_a_terminal_progress_is_drawn_below_logs_and_goes(server: Any, program: Path, fake_terminal: Any) -> None:
    environment = {**server.environment, "TERM": "xterm"}
    running = OnTerminal(fake_terminal(), environment, program.parent, "run", f"{program}::slowly")
    running.until("/16 done")
    assert re.match(r"slow: \d+/16 done", running.screen.seen()[-1])
    assert running.end() == 0
    seen = running.screen.seen()
    assert seen[0].startswith("python: ")
    assert seen[-1].startswith("done in ")
    assert len([line for line in seen if line.startswith("slow: ")]) <= 1
    assert "\x1b[2m" in running.screen.written
    quiet = OnTerminal(fake_terminal(), {**environment, "NO_COLOR": "1"}, program.parent, "run", f"{program}::both")
    assert quiet.end() == 0
    assert quiet.screen.seen()[1:-1] == ["both | to stdout", "both | to stderr", "both | red cleared"]
    assert "\x1b[2m" not in quiet.screen.written


def test_ctrl_c_counts_down_and_a_second_one_kills(server: Any, program: Path, fake_terminal: Any) -> None:
    running = OnTerminal(fake_terminal(), server.environment, program.parent, "run", f"{program}::stubborn_when_idle")
    running.until("Stubborn | ready")
    os.write(running.terminal, b"\x03")
    running.until("interrupted: stopping")
    running.until("s left for their exit hooks (Ctrl-C: kill)")
    os.write(running.terminal, b"\x03")
    assert running.end() == 130
    assert running.screen.seen()[-1].startswith("killed in ")
    assert "ephemeral" not in server.farcall("server", "status").stdout


def test_a_closed_terminal_stops_all(server: Any, program: Path, fake_terminal: Any) -> None:
    running = OnTerminal(fake_terminal(), server.environment, program.parent, "run", f"{program}::hang")
    running.until("ready")
    os.close(running.terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(running.pid, 0)[1]) == 130
    assert "ephemeral" not in server.farcall("server", "status").stdout


def test_logs_follow_until_the_call_is_over(start: Start, server: Any, program: Path) -> None:
    running = start("run", f"{program}::stubborn")
    running.until("hanging")
    status = server.farcall("server", "status").stdout
    app = re.search(r"(ap-\S+) +ephemeral", status)
    assert app, status
    logs = start("logs", "--follow", app[1])
    logs.until("hanging")
    running.process.send_signal(signal.SIGINT)
    logs.until("closing")
    running.process.send_signal(signal.SIGINT)
    running.end()
    assert logs.end() == 0


@pytest.mark.parametrize("columns", [500, 80, 40])
def test_the_first_line_fits_the_terminal(installation: Any, program: Path, columns: int) -> None:
    """As far as the interpreter's path does; all of it is there."""
    shown = Dialog(installation.environment, "run", "--local", f"{program}::where", columns=columns)
    assert shown.end() == 0
    said = shown.shown.replace("\r", "").split(f"{sys.prefix}\n")[0]
    assert "`import modal` gives farcall" in said and f"python: {sys.executable}" in said
    lines = said.splitlines()
    assert all(len(line) < columns or line == f"python: {sys.executable}" for line in lines[: said.count("\n")])
    whole = f"python: {sys.executable} (farcall's own); `import modal` gives farcall"
    assert lines == [whole] if len(whole) < columns else len(lines) > 1


def test_the_server_says_what_it_does(server: Any) -> None:
    import json

    assert re.match(r"farcall \S+ from .*, pid \d+, up ", server.farcall("server", "status").stdout)
    found = json.loads(server.farcall("server", "status", "--json").stdout)
    assert found["state"] == "running"
    assert "runs already" in server.farcall("server", "start").stderr
    assert f"pid {found['pid']}" in server.farcall("server", "logs").stdout


def test_the_server_runs_in_farcalls_own_environment(installation: Any, program: Path) -> None:
    """The program's interpreter has no farcall, and so no server."""
    tool, project = program.parent / "tool", program.parent / ".venv"
    for folder in (tool, project):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = [str(Path(module.__file__ or "").parents[1]) for module in (farcall.errors, msgspec)]
    site = tool / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    (site / "installed.pth").write_text("\n".join(packages))
    environment = {name: value for name, value in installation.environment.items() if name != "PYTHONPATH"}
    command = [tool / "bin" / "python", "-m", "farcall", "run", "-q", f"{program}::where"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{project}\n", done.stderr
    assert f" from {tool}, pid " in installation.farcall("server", "status").stdout


def test_no_server_at_all(installation: Any, program: Path) -> None:
    assert installation.farcall("server", "status", check=False).returncode == 3
    assert "does not run" in installation.farcall("server", "stop").stderr
    assert installation.farcall("run", "-q", f"{program}::square", "--x", "2").stdout == "squaring 2\n4\n"
    assert installation.farcall("server", "status").returncode == 0
