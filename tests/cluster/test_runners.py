"""Farcall's own files on a worker, for the Python of an image."""

import asyncio
import sys
from pathlib import Path

import pytest

from farcall.cluster.runners import runner_for
from farcall.interpreters import details
from farcall.spec.container import Interpreter


def test_a_worker_makes_them_where_it_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From what it has itself: nothing is fetched for a Python of its own version."""
    for variable in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    for variable in ("UV_OFFLINE", "UV_NO_CACHE", "PIP_NO_INDEX"):
        monkeypatch.setenv(variable, "1")
    mine = details(sys.executable)

    async def ask() -> list[Path]:
        python = Interpreter("/somewhere/else/python3", mine.version, mine.tag, (), "")
        return await asyncio.gather(runner_for(python), runner_for(python))

    first, second = asyncio.run(ask())
    assert first == second
    assert first.is_relative_to(tmp_path)
    assert (first / "msgspec" / f"_core.{mine.soabi}.so").exists()
