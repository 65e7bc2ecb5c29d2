"""What is looked up ahead never holds up or breaks a start, whatever is in the list or in its way."""

import os
from pathlib import Path

import pytest

from farcall.launcher import warming
from tests.conftest import open_descriptors


def test_the_paths_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "imports"
    file.write_bytes(b"/usr/lib/one.py\0/usr/lib/\xff.pyc\0relative\0\0/two.so")
    assert warming.paths(str(file)) == [b"/usr/lib/one.py", b"/usr/lib/\xff.pyc", b"/two.so"]
    file.write_bytes(b"/long\0" * 100_000)
    assert 0 < len(warming.paths(str(file))) < 100_000


def test_without_a_file() -> None:
    assert warming.paths("") == []
    assert warming.paths("/there/is/none") == []


def test_sources_are_found_and_all_else_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("one.py", "one.cpython-311.pyc", "two.so", "missing.so", "folder", "fifo")
    paths = [os.fsencode(tmp_path / name) for name in names]
    for path in paths[:3]:
        Path(os.fsdecode(path)).write_bytes(b"")
    os.mkdir(paths[4])
    os.mkfifo(paths[5])  # nobody writes to it: an open that waits would wait for ever
    opened: list[bytes] = []
    really = os.open

    def note(path: bytes, flags: int) -> int:
        opened.append(path)
        return really(path, flags)

    before = open_descriptors()
    monkeypatch.setattr(os, "open", note)
    warming.look_up(paths)
    assert opened == paths[1:]
    assert open_descriptors() <= before
