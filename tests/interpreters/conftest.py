import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of farcall and of the user go below tmp_path; no environment is active."""
    for variable, name in (("XDG_DATA_HOME", "data"), ("XDG_CACHE_HOME", "cache"), ("XDG_STATE_HOME", "state")):
        monkeypatch.setenv(variable, str(tmp_path / "xdg" / name))
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "FARCALL_STATE_DIR"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def make_venv(tmp_path: Path) -> Callable[[str], Path]:
    """Makes an empty venv, of this Python and without pip, and returns its folder."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        return folder

    return make


def _other_python() -> str | None:
    """A Python of another minor version than ours, from PATH or pyenv."""
    for minor in range(11, 16):
        name = f"python3.{minor}"
        if minor == sys.version_info.minor:
            continue
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
        for path in [*pyenv.glob(f"3.{minor}.*/bin/{name}"), *filter(None, [shutil.which(name)])]:
            if subprocess.run([path, "-c", "import ssl, venv"], capture_output=True).returncode == 0:
                return str(path)
    return None


@pytest.fixture(scope="session")
def other_python() -> Iterator[str]:
    found = _other_python()
    if found is None:
        pytest.skip("there is one Python version here only")
    yield found
