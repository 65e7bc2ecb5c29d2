"""The launcher of an ordinary user: the same containers, from within a user namespace of its own.

`make test` as an ordinary user runs all tests of this folder like that; as root, this one does it for nobody.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from other_user import NOBODY, folder_of_nobody, packages_for_all, python_for_nobody

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


@pytest.mark.root("becomes another user")
def test_an_ordinary_user(open_directory: Path) -> None:
    python = python_for_nobody()
    packages = packages_for_all(open_directory)
    base = folder_of_nobody(open_directory)
    done = subprocess.run(
        [python, "-c", _SCRIPT, str(base)],
        user=NOBODY,
        group=NOBODY,
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
