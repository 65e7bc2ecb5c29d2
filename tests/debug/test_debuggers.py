"""Breakpoints in functions and entrypoints are hit, in the process that the debugger launched."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.debug.conftest import Run

Write = Callable[[str, str], Path]

PROGRAM = """
import os
import farcall

app = farcall.App()

@app.function()
def square(x: int):
    result = x * x
    return result

@app.cls()
class Model:
    @farcall.enter()
    def load(self):
        self.offset = 1

    @farcall.method()
    async def add(self, x):
        total = x + self.offset
        return total

@app.function()
def count(n):
    for item in range(n):
        yield item

@app.local_entrypoint()
def main():
    print("pid", os.getpid())
    print(square.remote(5), list(square.map([1, 2])), Model().add.remote(3), list(count.remote_gen(2)))
"""

# A debugger as small as can be: it runs what it is given in its own process, and notes each function's lines.
TRACER = """
import os, runpy, sys

def trace(frame, event, argument):
    if not frame.f_code.co_filename.endswith("program.py"):
        return None
    if event == "line":
        seen.append((frame.f_code.co_name, frame.f_lineno))
    return trace

seen = []
sys.argv = sys.argv[1:]
sys.settrace(trace)
try:
    runpy.run_module("farcall", run_name="__main__", alter_sys=True)
except SystemExit as ended:
    sys.settrace(None)
    print("tracer", os.getpid(), "status", ended.code)
    for name in ("square", "load", "add", "count", "main"):
        print(name, any(name == function for function, _ in seen))
"""


def line_of(text: str) -> int:
    return PROGRAM.splitlines().index(text) + 1


@pytest.fixture
def program(write: Write) -> Path:
    return write("program.py", PROGRAM)


def test_a_tracer_sees_every_function(python: Run, write: Write, program: Path) -> None:
    done = python(write("tracer.py", TRACER), "farcall", "run", "--local", program)
    lines = done.stdout.splitlines()
    assert lines[1] == "25 [1, 4] 4 [0, 1]", done.stderr
    assert lines[2] == f"tracer {lines[0].removeprefix('pid ')} status 0"
    assert lines[3:] == ["square True", "load True", "add True", "count True", "main True"]


def test_pdb(python: Run, program: Path) -> None:
    square, add = line_of("    return result"), line_of("        return total")
    done = python(
        "-m",
        "pdb",
        "-m",
        "farcall",
        "run",
        program,
        FARCALL_LOCAL="1",  # in place of --local, which the pdb of Python 3.13.0 takes for an option of its own
        stdin=f"b {program}:{square}\nb {program}:{add}\nc\np 'square', result\ncl 1\nc\np 'add', total\nc\nq\n",
    )
    assert "('square', 25)" in done.stdout, done.stdout + done.stderr
    assert "('add', 4)" in done.stdout
    assert "25 [1, 4] 4 [0, 1]" in done.stdout


def test_breakpoint_in_the_code(python: Run, write: Write) -> None:
    program = write("program.py", PROGRAM.replace("    return result\n", "    breakpoint()\n    return result\n"))
    done = python("-m", "farcall", "run", "--local", f"{program}::square", "--x", "3", stdin="p 'stopped', result\nc\n")
    assert "(Pdb) ('stopped', 9)" in done.stdout, done.stderr
    assert done.stdout.endswith("9\n")


def test_debugpy(python: Run, program: Path, write: Write) -> None:
    """An editor's debugger, told what editors tell it, over its own protocol."""
    pytest.importorskip("debugpy", reason="needs the extra `notebook`")
    client = write("client.py", EDITOR)
    done = python(client, program, str(line_of("    return result")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stopped in square with result = 25" in done.stdout


# Speaks the Debug Adapter Protocol: launches `python -m farcall run --local FILE`, sets a breakpoint, reads a variable.
EDITOR = """
import json, os, subprocess, sys

program, line = sys.argv[1], int(sys.argv[2])
adapter = subprocess.Popen([sys.executable, "-m", "debugpy.adapter"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
sequence = 0

def send(command, **arguments):
    global sequence
    sequence += 1
    body = json.dumps({"seq": sequence, "type": "request", "command": command, "arguments": arguments}).encode()
    adapter.stdin.write(b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body)
    adapter.stdin.flush()
    return sequence

def receive(kind, name):
    while True:
        length = 0
        while (header := adapter.stdout.readline().strip()):
            length = int(header.split(b":")[1])
        assert length, f"the adapter ended before {kind} {name}"
        message = json.loads(adapter.stdout.read(length))
        if message["type"] == kind and message.get("command", message.get("event")) == name:
            assert message.get("success", True), message
            return message

send("initialize", adapterID="test", pathFormat="path", linesStartAt1=True)
receive("response", "initialize")
send("launch", module="farcall", args=["run", "--local", program], console="internalConsole", justMyCode=True,
     cwd=os.path.dirname(program), env=dict(os.environ), subProcess=False)
receive("event", "initialized")
send("setBreakpoints", source={"path": program}, breakpoints=[{"line": line}])
receive("response", "setBreakpoints")
send("configurationDone")
stopped = receive("event", "stopped")
send("stackTrace", threadId=stopped["body"]["threadId"])
frame = receive("response", "stackTrace")["body"]["stackFrames"][0]
send("evaluate", expression="result", frameId=frame["id"])
value = receive("response", "evaluate")["body"]["result"]
print("stopped in", frame["name"], "with result =", value)
send("setBreakpoints", source={"path": program}, breakpoints=[])
receive("response", "setBreakpoints")
send("continue", threadId=stopped["body"]["threadId"])
exited = receive("event", "exited")
send("disconnect")
receive("response", "disconnect")
adapter.kill()
adapter.wait()
sys.exit(exited["body"]["exitCode"])
"""


# --- which process


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    """A venv in which farcall is not installed, as a project's is."""
    venv = tmp_path / "project" / ".venv"
    base = Path(sysconfig.get_config_var("BINDIR")) / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    subprocess.run([base, "-m", "venv", "--without-pip", venv], check=True)
    return venv / "bin" / "python"


WHERE = """
import os, sys
import farcall

app = farcall.App()

@app.local_entrypoint()
def main():
    print(os.getpid(), sys.prefix)
"""


def launched(environment: dict[str, str], *arguments: str | Path) -> tuple[int, list[str], str]:
    """Runs `python -m farcall ARGUMENTS`: the process's id, the words it printed, and its stderr."""
    with subprocess.Popen(
        [sys.executable, "-m", "farcall", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        stdout, stderr = process.communicate(timeout=60)
    return process.pid, stdout.split(), stderr


def test_the_entrypoint_runs_in_the_process_that_was_started(
    environment: dict[str, str], write: Write, other_python: Path
) -> None:
    """Also with another interpreter, which takes this one's place."""
    program = write("where.py", WHERE)
    pid, words, stderr = launched(environment, "run", "--local", program)
    assert words == [str(pid), str(other_python.parents[1])], stderr
    pid, words, stderr = launched(environment, "run", "--local", "--python", sys.executable, program)
    assert words == [str(pid), sys.prefix], stderr


def test_a_debugger_keeps_its_interpreter(python: Run, write: Write, other_python: Path) -> None:
    """The project's interpreter would take the place of the process, and the debugger be lost."""
    program = write("where.py", WHERE)
    tracer = write("tracer.py", TRACER)
    done = python(tracer, "farcall", "run", "--local", program)
    pid, prefix = done.stdout.splitlines()[0].split()
    assert f"tracer {pid} status 0" in done.stdout
    assert prefix == sys.prefix
    assert f"python: {sys.executable} (the debugger's, not the .venv's {other_python})" in done.stderr


def test_naming_the_debuggers_own_interpreter_replaces_nothing(python: Run, write: Write) -> None:
    program = write("where.py", WHERE)
    done = python(write("tracer.py", TRACER), "farcall", "run", "--local", "--python", sys.executable, program)
    pid, _ = done.stdout.splitlines()[0].split()
    assert f"tracer {pid} status 0" in done.stdout, done.stderr


def test_naming_another_interpreter_under_a_debugger_says_what_is_lost(
    python: Run, write: Write, other_python: Path
) -> None:
    program = write("where.py", WHERE)
    done = python(write("tracer.py", TRACER), "farcall", "run", "--local", "--python", other_python, program)
    assert done.stdout.split()[1] == str(other_python.parents[1]), done.stderr
    assert "tracer" not in done.stdout
    assert f"the debugger does not follow into {other_python}" in done.stderr


def test_the_command_and_the_module_are_one_program(environment: dict[str, str], write: Write) -> None:
    command = Path(sys.executable).parent / "farcall"
    if not command.exists():
        pytest.skip("farcall is not installed as a command beside this Python")
    program = write("where.py", WHERE)
    for start in ([str(command)], [sys.executable, "-m", "farcall"]):
        done = subprocess.run(
            [*start, "run", "--local", str(program)], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.split()[1] == sys.prefix, done.stderr
        assert done.returncode == 0
        assert os.path.basename(start[-1]) == "farcall"
