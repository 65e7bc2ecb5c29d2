"""Programs run by `farcall run --local`, as a command, under debuggers, and on systems that are not Linux."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import farcall

SOURCE = str(Path(farcall.__file__).parents[1])

Run = Callable[..., subprocess.CompletedProcess[str]]

# What a system lacks, taken away before farcall is imported. The standard library is asked for first: its own modules
# look at the system when they are imported, and on this one they could not become another system's.
_ELSEWHERE = """\
import asyncio, concurrent.futures, inspect, multiprocessing, os, select, signal, socket, subprocess, sys, tempfile
import importlib.util, importlib.metadata, pathlib, platform, shutil, threading, traceback, typing, uuid, zoneinfo
sys.platform = {platform!r}
linux = ["memfd_create", "pidfd_open", "pipe2", "sched_getaffinity", "sched_setaffinity", "splice", "eventfd"]
for name in linux:
    if hasattr(os, name):
        delattr(os, name)
for name in ("epoll",):
    delattr(select, name)
if sys.platform == "win32":
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name in ("fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty", "pty"):
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    sys.meta_path.insert(0, Absent())
    for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty"):
        sys.modules.pop(name, None)
    unix = ["fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "getpgid", "setsid", "killpg", "uname", "wait"]
    unix += ["register_at_fork", "chown", "getgroups", "mkfifo", "pwrite", "pread", "O_CLOEXEC"]
    unix += ["preadv", "pwritev"]
    for name in unix:
        if hasattr(os, name):
            delattr(os, name)
    for name in ("SIGHUP", "SIGURG", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGPIPE"):
        if hasattr(signal, name):
            delattr(signal, name)
    pair = socket.socketpair
    socket.socketpair = lambda *ignored, unix=socket.AF_UNIX: pair(unix)  # Windows has one, made of TCP
    for name in ("AF_UNIX", "SCM_RIGHTS", "send_fds", "recv_fds"):
        if hasattr(socket, name):
            delattr(socket, name)
from farcall.cli.main import main
sys.exit(main())
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """No server, no settings: directories of a home that does not exist yet."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return kept | {
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": SOURCE,
        "FARCALL_STATE_DIR": str(tmp_path / "state"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a program into a folder of its own."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / "project" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def python(environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs `python ARGUMENTS`, with what is typed into it."""

    def run(
        *arguments: str | Path, stdin: str = "", executable: str = sys.executable, **more: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [executable, *map(str, arguments)],
            input=stdin,
            env=environment | more,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture(params=["linux", "darwin", "win32"])
def farcall_on(request: pytest.FixtureRequest, python: Run) -> Run:
    """Runs `farcall ARGUMENTS` on each kind of system, or what comes close to it."""

    def run(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        if request.param == "linux":
            return python("-m", "farcall", *arguments, **more)
        return python("-c", _ELSEWHERE.format(platform=request.param), *arguments, **more)

    return run
