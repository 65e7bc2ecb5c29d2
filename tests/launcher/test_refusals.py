"""Machines that refuse something: the container starts all the same, or the error names the cause and the remedy."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher_harness import Rig

from farcall.launcher.namespaces import explain
from farcall.spec.container import Bind

_TESTS = Path(__file__).parent
_RESTRICT = _TESTS.parent / "hosts/restrict.py"
_SCRIPT = """
import json, sys
from pathlib import Path
from launcher_harness import Rig, make_runner, this_interpreter
base = Path(sys.argv[1])
rig = Rig(base / "state", this_interpreter(make_runner(base / "runner")))
found = {}
for name, spec in {"exec": {"start": "exec"}, "fork": {"start": "fork"}, "process": {"runtime": "process"}}.items():
    try:
        result = rig.run("print('ran')", block_network=False, **spec)
        found[name] = [result.output.strip(), *result.started.notes]
    except Exception as error:
        found[name] = [type(error).__name__, str(error)]
rig.close()
print(json.dumps(found))
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short name, outside of pytest's own."""
    directory = Path(tempfile.mkdtemp(prefix="fc-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def restricted(kind: str, directory: Path) -> dict[str, list[str]]:
    """What comes of each kind of start on such a machine."""
    import farcall.errors

    source = Path(farcall.errors.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, str(_RESTRICT), kind, "--", sys.executable, "-c", _SCRIPT, str(directory)],
        env={**os.environ, "PYTHONPATH": f"{source}:{_TESTS}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_namespaces_refused(directory: Path) -> None:
    found = restricted("refuse-namespaces", directory)
    for start in ("exec", "fork"):
        assert found[start][0] == "ContainerStartError"
        assert "a seccomp filter refuses namespaces" in found[start][1]
        assert "--runtime process" in found[start][1]
    assert found["process"][0] == "ran"


@pytest.mark.root("mounts")
def test_no_cgroup(directory: Path) -> None:
    found = restricted("no-cgroup", directory)
    for start in ("exec", "fork", "process"):
        assert found[start][0] == "ran"
        assert any("no writable cgroup for cpu, memory, pids" in note for note in found[start][1:])


@pytest.mark.root("mounts")
def test_read_only_proc(directory: Path) -> None:
    assert {start: found[0] for start, found in restricted("readonly-proc", directory).items()} == {
        "exec": "ran",
        "fork": "ran",
        "process": "ran",
    }


def test_inside_a_container_of_ours(rig: Rig) -> None:
    binds = (Bind(str(_TESTS), "/srv/tests"),)
    code = f"import subprocess; path = os.environ['FARCALL_RUNNER_PATH'] + ':/srv/tests'; script = {_SCRIPT!r}\n"
    code += "env = {**os.environ, 'PYTHONPATH': path}; os.mkdir('/tmp/base')\n"
    code += "sys.exit(subprocess.run([sys.executable, '-c', script, '/tmp/base'], env=env).returncode)"
    output = rig.run(code, binds=binds).output
    found = json.loads(output)
    for start in ("exec", "fork"):
        assert found[start][0] == "ContainerStartError"
        assert "--runtime process" in found[start][1]
    assert found["process"][0] == "ran"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSPC, errno.ENOSYS, errno.EROFS, errno.EINVAL])
def test_every_refusal_names_a_cause_and_a_remedy(number: int) -> None:
    line = explain("user namespace", number, "refused")
    assert errno.errorcode[number] in line
    assert line.count(";") == 2
    assert line.endswith("--runtime process")
    assert "\n" not in line
