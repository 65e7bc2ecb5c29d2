"""The distributions under test, built once, and an ordinary user to install them as."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 65534  # uid and gid of Debian's `nobody`: no home, no subordinate ids, no group; as ordinary as a user gets


@dataclass(frozen=True)
class Distributions:
    sdist: Path
    wheel: Path


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """An sdist of the checkout, and a wheel built from that sdist, as an index would hand them out."""
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, REPOSITORY],
        check=True,
        capture_output=True,
        text=True,
    )
    return Distributions(next(target.glob("*.tar.gz")), next(target.glob("*.whl")))


@dataclass
class OrdinaryUser:
    """Runs commands with a home of its own, and without root even when the tests are root."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])

    def run(self, *command: str | Path, timeout: float = 120) -> str:
        """What the command printed on stdout; a status other than 0 fails the test with everything it printed."""
        as_root = os.geteuid() == 0
        completed = subprocess.run(
            list(map(str, command)),
            user=NOBODY if as_root else None,
            group=NOBODY if as_root else None,
            extra_groups=[] if as_root else None,
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if completed.returncode != 0:
            pytest.fail(
                f"{' '.join(map(str, command))} ended with {completed.returncode}\n"
                f"--- stdout\n{completed.stdout}\n--- stderr\n{completed.stderr}",
                pytrace=False,
            )
        return completed.stdout

    def give(self, source: Path) -> Path:
        """A copy of a file in the user's home, which can be run if the file can."""
        copy = self.home / source.name
        shutil.copy(source, copy)
        copy.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
        return copy


@pytest.fixture
def ordinary_user() -> Iterator[OrdinaryUser]:
    """A user with an empty home and none of the variables that lead to this checkout."""
    home = Path(tempfile.mkdtemp(prefix="fc-", dir="/tmp"))
    dropped = ("PYTHON", "VIRTUAL_ENV", "XDG_", "FARCALL_", "HOME", "UV_", "PIPX_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    environment |= {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "USER": "nobody", "LOGNAME": "nobody"}
    try:
        if os.geteuid() == 0:
            os.chown(home, NOBODY, NOBODY)
        yield OrdinaryUser(home, environment)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def system_python() -> str:
    """A Python an ordinary user may run: not one below root's home."""
    found = subprocess.run([REPOSITORY / "scripts/find-python"], capture_output=True, text=True, check=True)
    return found.stdout.strip()
