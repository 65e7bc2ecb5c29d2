"""The launcher of an ordinary user: the same containers, from within a user namespace of its own.

`make test` as an ordinary user runs all tests of this folder like that; as root, this one does it for nobody.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import farcall.errors

_NOBODY = 65534
_SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from launcher_harness import Rig, gone, make_runner, this_interpreter
from farcall.spec.container import Bind, Limits

base = Path(sys.argv[1])
(base / "source").mkdir(mode=0o700)
(base / "source/private").write_text("private")
(base / "source/private").chmod(0o600)
rig = Rig(base / "state", this_interpreter(make_runner(base / "runner")))
facts = {}
inside = '''
print(os.getpid(), os.getuid(), open("/srv/private").read(), sorted(p for p in os.listdir("/proc") if p.isdigit()))
print(os.path.exists("/home/nobody"), os.access("/usr/x", os.W_OK), open("/proc/self/status").read().count("04eb"))
import socket
socket.create_server(("127.0.0.1", 80)).close()
open("/root/x", "w").close(); os.mkdir("/tmp/y"); open("/z", "w").close()
'''
for start in ("fork", "exec"):
    bind = Bind(str(base / "source"), "/srv")
    result = rig.run(inside, start=start, binds=(bind,))
    facts[start] = [result.output, result.exited.exit_code, result.started.notes]
    facts[start + " status"] = [
        rig.run("sys.exit(7)", start=start).exited.exit_code,
        rig.run("os.abort()", start=start).exited.signal,
    ]
facts["memory"] = rig.run("x = bytearray(300 << 20)", limits=Limits(memory_limit=100)).output
facts["process"] = rig.start("print('plain')", runtime="process").result().output
living = rig.start("print('up', flush=True); import time; time.sleep(600)")
living.read_line()
os.kill(rig.client.launcher_pid, signal.SIGKILL)
rig.wait(rig.loss())
facts["died"] = gone(living.started.pidfd)
rig.lost = False
rig.connect()
facts["left"] = [p.name for name in ("journal", "containers", "trash") for p in (base / "state" / name).iterdir()]
facts["again"] = rig.run("print(1)").output
living.close()
rig.close()
print(json.dumps(facts))
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that another user can use, which pytest's own is not."""
    directory = Path(tempfile.mkdtemp(prefix="fc-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def _python_for_nobody() -> str:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        command = [python, "-c", "import sys; print(sys.version_info[:2])"]
        try:
            who = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
            answer = subprocess.run(command, **who, capture_output=True, text=True, check=False)
        except OSError:
            continue
        if answer.stdout.strip() == str(tuple(sys.version_info[:2])):
            return python
    pytest.skip(f"needs a {version} that an ordinary user may execute")


def _packages(directory: Path) -> Path:
    """What the script imports, readable for all."""
    packages = directory / "packages"
    shutil.copytree(Path(farcall.errors.__file__).parent, packages / "farcall")
    shutil.copytree(Path(msgspec.__file__).parent, packages / "msgspec")
    shutil.copy(Path(__file__).parent / "launcher_harness.py", packages)
    return packages


@pytest.mark.root("becomes another user")
def test_an_ordinary_user(open_directory: Path) -> None:
    python = _python_for_nobody()
    packages = _packages(open_directory)
    base = open_directory / "nobody"
    base.mkdir()
    os.chown(base, _NOBODY, _NOBODY)
    done = subprocess.run(
        [python, "-c", _SCRIPT, str(base)],
        user=_NOBODY,
        group=_NOBODY,
        extra_groups=[],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(packages)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if "ContainerStartError" in done.stderr and "namespace" in done.stderr:
        pytest.skip(f"needs user namespaces for ordinary users: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    for start in ("fork", "exec"):
        output, code, _ = facts[start]
        assert output == "2 0 private ['1', '2']\nFalse False 3\n"
        assert code == 0
        assert facts[start + " status"] == [7, 6]
    assert "MemoryError" in facts["memory"] or facts["memory"] == ""  # without and with a memory cgroup
    assert facts["process"] == "plain\n"
    assert facts["died"] is True
    assert facts["left"] == []
    assert facts["again"] == "1\n"
