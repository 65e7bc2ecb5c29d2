"""A launcher of its own for each module, and an interpreter that runs a line of code."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from farcall.spec.container import Interpreter

sys.path.insert(0, str(Path(__file__).parent))
import image_harness  # noqa: F401 - the tests find these by name
import lazy_harness  # noqa: F401
import other_user  # noqa: F401
from launcher_harness import Rig, make_runner, this_interpreter

sys.path.pop(0)


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Interpreter:
    """This interpreter, with a runner directory as a real one is laid out."""
    runner = make_runner(tmp_path_factory.mktemp("runners") / "runner")
    return this_interpreter(runner)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, interpreter: Interpreter) -> Iterator[Rig]:
    """A launcher that the tests of a module share."""
    rig = Rig(tmp_path_factory.mktemp("state"), interpreter)
    yield rig
    rig.close()


@pytest.fixture
def own_rig(tmp_path: Path, interpreter: Interpreter) -> Iterator[Rig]:
    """A launcher for one test, which may kill it."""
    rig = Rig(tmp_path / "state", interpreter)
    yield rig
    rig.close()


@pytest.fixture(params=["fork", "exec"])
def start(request: pytest.FixtureRequest) -> str:
    """Both ways to start a container."""
    return request.param


@pytest.fixture(scope="session")
def memory_cgroup(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where no memory cgroup can be written."""
    from farcall.launcher.cgroups import Cgroups

    probe = Cgroups(f"farcall-test-{os.getpid()}")
    probe.close()
    if "memory" in probe.missing:
        pytest.skip("needs a writable memory cgroup")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that another user can use, which pytest's own is not."""
    directory = Path(tempfile.mkdtemp(prefix="fc-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
