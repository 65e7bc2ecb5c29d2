"""A launcher of its own for each test, and a runner that runs a line of code."""

import shutil
import sys
import sysconfig
from pathlib import Path

import msgspec
import pytest

import farcall.errors
import farcall.launcher
from farcall.spec.container import Interpreter

_BOOTSTRAP = """
import os, sys
sys.path.insert(0, os.environ["FARCALL_RUNNER_PATH"])
from farcall.runner.main import main
main()
"""
# The code may use what it likes; the result goes to stdout or into the exit status.
_MAIN = """
def main():
    import os, sys
    exec(compile(os.environ["CODE"], "<code>", "exec"), {"__name__": "__main__", "os": os, "sys": sys})
"""


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Interpreter:
    """This interpreter, with a runner directory as a real one is laid out."""
    runner = tmp_path_factory.mktemp("runner")
    package = Path(farcall.errors.__file__).parent
    (runner / "farcall/runner").mkdir(parents=True)
    shutil.copy(package / "errors.py", runner / "farcall")
    for directory in ("farcall", "farcall/runner"):
        (runner / directory / "__init__.py").touch()
    for name in ("launcher", "spec"):
        shutil.copytree(package / name, runner / "farcall" / name, ignore=shutil.ignore_patterns("__pycache__"))
    (runner / "farcall/runner/bootstrap.py").write_text(_BOOTSTRAP)
    (runner / "farcall/runner/main.py").write_text(_MAIN)
    shutil.copytree(Path(msgspec.__file__).parent, runner / "msgspec")
    for directory in [runner, *runner.parents[:3]]:
        directory.chmod(0o755)  # an ordinary user's launcher reads it too
    paths = {sys.prefix, sys.base_prefix, *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib"))}
    return Interpreter(
        executable=sys.executable,
        version=".".join(map(str, sys.version_info[:3])),
        tag=f"cp{sys.version_info.major}{sys.version_info.minor}",
        paths=tuple(sorted(paths)),
        runner_path=str(runner),
    )
