"""Runtime "process": no namespaces, but an end that is told exactly and leaves nothing."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from launcher_harness import Rig, Running, eventually

from farcall.launcher import syscalls
from farcall.launcher.process_runtime import MARK
from farcall.spec.container import Bind


def start(rig: Rig, code: str, **spec: Any) -> Running:
    return rig.start(code, runtime="process", **spec)


def test_runs_and_says_that_it_is_not_isolated(rig: Rig) -> None:
    container = start(rig, "print('hello', os.path.basename(os.getcwd()), os.environ['HOME'].endswith('/root'))")
    assert "not isolated" in container.notes[0]
    result = container.result()
    assert result.output == "hello root True\n"
    assert result.exited.exit_code == 0


def test_exact_status(rig: Rig) -> None:
    assert start(rig, "sys.exit(7)").result().exited.exit_code == 7
    assert start(rig, "os.abort()").result().exited.signal == signal.SIGABRT
    assert start(rig, "os.kill(os.getpid(), 9)").result().exited.signal == signal.SIGKILL


def test_signals_and_kill(rig: Rig) -> None:
    code = "import signal, time; signal.signal(12, lambda *_: sys.exit(3)); print('up', flush=True); time.sleep(60)"
    container = start(rig, code)
    assert container.read_line() == "up"
    rig.wait(rig.client.signal(container.id, signal.SIGUSR2))
    assert container.result().exited.exit_code == 3
    container = start(rig, code)
    assert container.read_line() == "up"
    rig.wait(rig.client.kill(container.id))
    assert container.result().exited.killed_by_us


def survivors(container_id: str) -> list[str]:
    found: list[str] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if f"{MARK}={container_id}\0".encode() in Path(f"/proc/{name}/environ").read_bytes() + b"\0":
                    found.append(name)
            except OSError:
                continue
    return found


_DAEMON = "import subprocess; subprocess.run(['sh', '-c', 'setsid sleep 600 & setsid setsid sleep 600 &']); "


def test_daemons_are_killed_at_the_end(rig: Rig) -> None:
    container = start(rig, _DAEMON)
    container.result()
    assert survivors(container.id) == []


def test_daemons_are_killed_with_the_supervisor(rig: Rig) -> None:
    container = start(rig, _DAEMON + "print('up', flush=True); os.kill(os.getppid(), 9)")
    assert container.read_line() == "up"
    assert container.result().exited.signal == signal.SIGKILL
    eventually(lambda: survivors(container.id) == [], "all processes of the container are gone")


def test_daemons_are_killed_with_the_launcher(own_rig: Rig) -> None:
    container = start(own_rig, _DAEMON + "print('up', flush=True); import time; time.sleep(60)")
    assert container.read_line() == "up"
    os.kill(own_rig.client.launcher_pid, signal.SIGKILL)
    own_rig.wait(own_rig.loss())
    eventually(lambda: survivors(container.id) == [], "all processes of the container are gone")
    container.close()


def test_network_is_blocked(rig: Rig) -> None:
    code = """
import socket
socket.socketpair()
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
    try: socket.socket(family, socket.SOCK_RAW if family == socket.AF_NETLINK else socket.SOCK_STREAM)
    except PermissionError: print("refused")
"""
    assert start(rig, code, block_network=True).result().output == "refused\n" * 3
    assert start(rig, code, block_network=False).result().output == ""


def test_filtered_calls(rig: Rig) -> None:
    code = "import ctypes; libc = ctypes.CDLL(None); print(libc.unshare(0x10000000), libc.ptrace(0, 0, 0, 0))"
    assert start(rig, code).result().output == "-1 -1\n"


@pytest.mark.skipif(syscalls.landlock_abi() == 0, reason="needs a kernel with Landlock")
def test_writes_stay_in_the_area(rig: Rig, tmp_path: Path) -> None:
    for name in ("hidden", "shown", "shared"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    binds = (Bind(str(tmp_path / "shown"), str(tmp_path / "shown")),)
    binds += (Bind(str(tmp_path / "shared"), str(tmp_path / "shared"), read_only=False),)
    code = f"""
def attempt(mode, path):
    try: open(path, mode).close(); return True
    except OSError: return False
base = {str(tmp_path)!r}
print([attempt("r", f"{{base}}/{{name}}/file") for name in ("hidden", "shown", "shared")])
print([attempt("a", f"{{base}}/{{name}}/file") for name in ("hidden", "shown", "shared")])
print(attempt("w", "/tmp/x-farcall-test"), attempt("w", "x"), attempt("w", os.environ["TMPDIR"] + "/x"))
import tempfile, multiprocessing
tempfile.TemporaryFile().close()
print(attempt("w", "/dev/null"), multiprocessing.Value("i", 3).value)
"""
    result = start(rig, code, binds=binds).result()
    assert result.output == "[False, True, True]\n[False, False, True]\nFalse True True\nTrue 3\n"
