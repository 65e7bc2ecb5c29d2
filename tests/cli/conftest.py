import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import farcall.errors
from tests.conftest import Installation

# As an installed command: no variable leads other interpreters to this farcall.
_SOURCE = str(Path(farcall.errors.__file__).parents[1])
_COMMAND = (
    f"import sys; sys.path.insert(0, {_SOURCE!r}); sys.path.insert(0, '/nowhere')\n"
    "from farcall.cli.main import main\n"
    "sys.exit(main())"
)

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path, shared: Path) -> Cli:
    """Runs `farcall ARGUMENTS` in `tmp_path`, with directories of its own below it, and without a server."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}

    def run(*arguments: str | Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", _COMMAND, *map(str, arguments)],
            env={
                **kept,
                "HOME": str(tmp_path / "home"),
                "XDG_CONFIG_HOME": str(tmp_path / "config"),
                "FARCALL_STATE_DIR": str(tmp_path / "state"),
                "XDG_DATA_HOME": str(shared / "data"),
                "XDG_CACHE_HOME": str(shared / "cache"),
                **environment,
            },
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def on_server(server: Installation, tmp_path: Path) -> Cli:
    """Runs `farcall ARGUMENTS` in `tmp_path` as a client of the module's server, with text on its standard input."""

    def run(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "farcall", *map(str, arguments)],
            env=server.environment,
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=100,
        )

    return run


def set_size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def fork_on_terminal(
    environment: dict[str, str], *arguments: str, rows: int, columns: int, folder: Path | None = None
) -> tuple[int, int]:
    """Runs `farcall ARGUMENTS` on a terminal of this size; its pid, and the terminal's other end."""
    pid, terminal = pty.fork()
    if pid == 0:
        set_size(0, rows, columns)
        os.chdir(folder or os.curdir)
        os.execve(sys.executable, [sys.executable, "-m", "farcall", *arguments], environment)
    return pid, terminal


class Dialog:
    """A command on a terminal that is ours: what it writes, as it is, and keys for it."""

    def __init__(self, environment: dict[str, str], *arguments: str, rows: int = 24, columns: int = 80) -> None:
        self.shown = ""
        self._answered = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._pid, self._fd = fork_on_terminal(environment, *arguments, rows=rows, columns=columns)

    def resize(self, rows: int, columns: int) -> None:
        set_size(self._fd, rows, columns)

    def until(self, text: str, within: float = 30.0) -> None:
        """Reads until `text` has been written after what was waited for last."""
        deadline = time.monotonic() + within
        while (found := self.shown.find(text, self._answered)) < 0:
            ready, _, _ = select.select([self._fd], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} did not come:\n{self.shown}"
            self.shown += self._decoder.decode(os.read(self._fd, 65536))
        self._answered = found + len(text)

    def say(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def hang_up(self) -> int:
        """Closes the terminal; the exit code."""
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def end(self) -> int:
        """Reads what is left; the exit code."""
        try:
            while piece := os.read(self._fd, 65536):
                self.shown += self._decoder.decode(piece)
        except OSError:  # the last process that had it open has ended
            pass
        return self.hang_up()


class FakeTerminal:
    """What a person would see. Write to it as to a text stream; several streams may share one screen."""

    def __init__(self, *, terminal: bool = True, screen: "FakeTerminal | None" = None) -> None:
        self._terminal = terminal
        self._shared = screen
        self.lines: list[str] = [""]
        self._cut = ""  # the beginning of a control sequence whose rest is still to come
        self._row = 0
        self._column = 0
        self.written = ""

    def isatty(self) -> bool:
        return self._terminal

    def flush(self) -> None: ...

    def write(self, text: str) -> int:
        self.written += text
        (self._shared or self)._show(text)
        return len(text)

    def seen(self) -> list[str]:
        """The lines on the screen, without colour and without the empty last one."""
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in self.lines]
        return lines[:-1] if lines and not lines[-1] else lines

    def _show(self, text: str) -> None:
        text = self._cut + text
        whole = re.sub(r"\x1b(\[[0-9;]*)?\Z", "", text)
        text, self._cut = whole, text[len(whole) :]
        for piece in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", text):
            if piece == "\n":
                self._row += 1
                self._column = 0
                if self._row == len(self.lines):
                    self.lines.append("")
            elif piece == "\r":
                self._column = 0
            elif piece.startswith("\x1b"):
                self._control(piece)
            else:
                line = self.lines[self._row].ljust(self._column)
                self.lines[self._row] = line[: self._column] + piece + line[self._column + len(piece) :]
                self._column += len(piece)

    def _control(self, sequence: str) -> None:
        number = int(sequence[2:-1] or 1) if sequence[2:-1].isdigit() or not sequence[2:-1] else 0
        if sequence.endswith("A"):
            self._row = max(self._row - number, 0)
        elif sequence.endswith("J"):
            self.lines[self._row] = self.lines[self._row][: self._column]
            del self.lines[self._row + 1 :]
        else:
            assert sequence.endswith("m"), f"not understood: {sequence!r}"


@pytest.fixture
def fake_terminal() -> type[FakeTerminal]:
    return FakeTerminal
