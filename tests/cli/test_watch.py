"""`farcall run --watch`: a program that is run again on every save."""

import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import farcall

app = farcall.App()

@app.function()
def say(word):
    return word + " 1"

@app.local_entrypoint()
def main(word: str = "word"):
    print(say.remote(word))
"""

WATCHING = "Ctrl-C ends"


class Watched:
    """A command `farcall run --watch ...`, and the lines that it prints."""

    def __init__(self, installation: Any, *arguments: str) -> None:
        command = [sys.executable, "-m", "farcall", "run", "--watch", *arguments]
        self.process = subprocess.Popen(
            command,
            env=installation.environment,
            cwd=installation.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def until(self, text: str) -> list[str]:
        """The lines up to the first that has `text` in it."""
        seen: list[str] = []
        deadline = time.monotonic() + 30
        while not seen or text not in seen[-1]:
            try:
                seen.append(self._lines.get(timeout=deadline - time.monotonic()))
            except (queue.Empty, ValueError):
                pytest.fail(f"no line has {text!r} in it; there were:\n" + "\n".join(seen))
        return seen

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        os.kill(self.process.pid, number)
        return self.process.wait(30)


@pytest.fixture
def watched(installation: Any) -> Iterator[Any]:
    """Starts a command that is watched, and sees it ended."""
    started: list[Watched] = []

    def start(*arguments: str) -> Watched:
        started.append(Watched(installation, *arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


@pytest.fixture
def program(installation: Any) -> Path:
    path = Path(installation.root) / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    return path


def save(path: Path, old: str, new: str) -> None:
    """As an editor does it that keeps the old file until the new one is whole."""
    text = path.read_text()
    assert old in text
    path.with_suffix(".tmp").write_text(text.replace(old, new))
    path.with_suffix(".tmp").rename(path)


def test_it_runs_again_on_every_save(watched: Any, program: Path, installation: Any) -> None:
    (program.parent / "other.txt").touch()
    run = watched("program.py", "--word", "hello")
    assert "hello 1" in run.until(WATCHING)
    server = installation.farcall("server", "status").stdout
    save(program, "1", "2")
    assert "farcall: program.py was saved: running again" in run.until("hello 2")
    run.until(WATCHING)
    program.write_text(program.read_text().replace("2", "3"))
    run.until("hello 3")
    run.until(WATCHING)
    assert server.split("pid ")[1].split()[0] in installation.farcall("server", "status").stdout
    assert run.end() == 0


def test_it_goes_on_after_an_error(watched: Any, program: Path) -> None:
    helper = program.parent / "helper_of_program.py"
    helper.write_text("def word():\n    return 'from helper'\n")
    save(program, "import farcall", "import farcall\nfrom helper_of_program import word as helped")
    save(program, "print(", "print(helped(), ")
    run = watched("--local", "program.py")
    run.until("from helper word 1")
    run.until(WATCHING)
    save(helper, "def word():", "def word(:")
    assert any("SyntaxError" in line for line in run.until(WATCHING))
    save(helper, "def word(:", "def word():")
    run.until("from helper word 1")
    run.until(WATCHING)
    save(helper, "return 'from helper'", "raise ValueError('no word')")
    assert any("ValueError: no word" in line for line in run.until(WATCHING))
    save(helper, "raise ValueError('no word')", "return 'again'")
    run.until("again word 1")
    assert run.end(signal.SIGTERM) == 130


def test_a_program_that_begins_with_an_error_is_watched(watched: Any, program: Path) -> None:
    save(program, "import farcall", "import farcall, broken_helper")
    broken = program.parent / "broken_helper.py"
    broken.write_text("x = (")
    run = watched("--local", "program.py")
    assert any("SyntaxError" in line for line in run.until(WATCHING))
    broken.write_text("x = ()")
    run.until("word 1")
    assert run.end() == 0


def test_a_save_ends_the_run_that_goes_on(watched: Any, program: Path) -> None:
    save(program, "    return word", "    import time\n    print('sleeping')\n    time.sleep(100)\n    return word")
    run = watched("program.py")
    run.until("sleeping")
    save(program, "time.sleep(100)", "pass")
    assert any(line.startswith("interrupted") for line in run.until("word 1"))
    run.until(WATCHING)
    assert run.end() == 0


def test_a_program_that_runs_is_ended_with_it(watched: Any, program: Path, installation: Any) -> None:
    save(program, "    return word", "    import time\n    print('sleeping')\n    time.sleep(100)\n    return word")
    run = watched("program.py")
    run.until("sleeping")
    assert run.end() == 0
    run.until("interrupted in")


def test_all_that_is_mounted_is_watched(watched: Any, program: Path) -> None:
    data = program.parent / "data"
    (data / "deep").mkdir(parents=True)
    (data / "deep" / "word.txt").write_text("first")
    save(program, "farcall.App()", 'farcall.App(image=farcall.Image.host().add_local_dir("data", "/data"))')
    save(program, 'word + " 1"', 'open("/data/deep/word.txt").read()')
    run = watched("program.py")
    run.until("first")
    run.until(WATCHING)
    (data / "deep" / "__pycache__").mkdir()
    (data / "deep" / "__pycache__" / "x.pyc").touch()
    (data / "deep" / "word.txt").write_text("second")
    assert "data/deep/word.txt was saved" in run.until("second")[0]
    run.until(WATCHING)
    (data / "new.txt").touch()
    run.until("data/new.txt was saved")
    run.until(WATCHING)
    assert run.end() == 0


def test_a_module_is_watched(watched: Any, program: Path) -> None:
    package = program.parent / "package_to_watch"
    package.mkdir()
    (package / "__init__.py").touch()
    program.rename(package / "main.py")
    run = watched("--local", "-m", "package_to_watch.main")
    run.until("word 1")
    run.until(WATCHING)
    save(package / "main.py", '" 1"', '" 2, longer"')  # bytecode of a file of this length is not taken for its own
    run.until("word 2, longer")
    assert run.end() == 0


def test_what_cannot_be_watched(installation: Any, program: Path) -> None:
    done = installation.farcall("run", "--watch", "--detach", program, check=False)
    assert done.returncode == 2
    assert "leave out --detach" in done.stderr
    assert installation.farcall("run", "--watch", "missing.py", check=False).returncode == 2
