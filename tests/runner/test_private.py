"""A runner from a runner directory, in an interpreter that has neither farcall nor what it imports."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from farcall.interpreters.probe import probe

from .conftest import Worker


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker whose runner is in a fresh virtual environment."""
    for name in ("DATA", "CACHE", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    made = Worker(tmp_path, python, Path(probe(python).runner_path))
    yield made
    made.close()


def test_user_code_sees_nothing_of_ours(bare: Worker) -> None:
    bare.load("""
        import importlib.util, sys
        import farcall
        app = farcall.App("x")
        def f():
            return [importlib.util.find_spec(name) is None for name in ("msgspec", "cloudpickle", "uvloop")]
    """)
    assert bare.call() == [True, True, True]


def test_user_code_has_its_own_packages(bare: Worker) -> None:
    for name in ("msgspec", "cloudpickle"):
        (bare.folder / f"{name}.py").write_text("mine = True\n")
    bare.load("import cloudpickle, msgspec\ndef f(x):\n    return msgspec.mine, cloudpickle.mine, (lambda: x)\n")
    *mine, closure = bare.call(3)
    assert mine == [True, True]
    assert closure() == 3


def test_processes_that_user_code_spawns_find_farcall(bare: Worker) -> None:
    bare.load("""
        import multiprocessing
        import farcall
        app = farcall.App("x")
        def double(x):
            return x * 2, farcall.is_local()
        @app.function()
        def f(n):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                return pool.map(double, range(n))
    """)
    assert bare.call(3) == [(0, True), (2, True), (4, True)]
