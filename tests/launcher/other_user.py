"""What another user's Python needs to run a script of these tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import farcall.errors

NOBODY = 65534


def python_for_nobody() -> str:
    """A Python like this one that an ordinary user may execute; skips where there is none."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        command = [python, "-c", "import sys; print(sys.version_info[:2])"]
        try:
            who = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            answer = subprocess.run(command, **who, capture_output=True, text=True, check=False)
        except OSError:
            continue
        if answer.stdout.strip() == str(tuple(sys.version_info[:2])):
            return python
    pytest.skip(f"needs a {version} that an ordinary user may execute")


def packages_for_all(directory: Path) -> Path:
    """What the scripts import, readable for all."""
    packages = directory / "packages"
    shutil.copytree(Path(farcall.errors.__file__).parent, packages / "farcall")
    shutil.copytree(Path(msgspec.__file__).parent, packages / "msgspec")
    for name in ("launcher_harness.py", "image_harness.py", "tree_tour.py"):
        shutil.copy(Path(__file__).parent / name, packages)
    return packages


def folder_of_nobody(directory: Path) -> Path:
    """A directory in `directory` that belongs to that user."""
    base = directory / "nobody"
    base.mkdir()
    os.chown(base, NOBODY, NOBODY)
    return base
