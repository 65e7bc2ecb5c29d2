"""The account of open files that servers of the lazy file system hand on."""

import os
from collections.abc import Iterator

import pytest

from farcall.mounts.lazy import openings
from farcall.mounts.lazy.openings import Opening, Openings


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("openings")
    yield fd
    os.close(fd)


def test_a_server_knows_what_the_one_before_had_open(memory: int) -> None:
    first = Openings(memory)
    first.opened(7, 3)
    first.opened(7, 3)
    first.opened(8, 0)
    assert first.released(8) == 0
    second = Openings(memory)
    assert (second.get(7), second.get(8)) == (Opening(3, 2), None)
    assert second.released(7) == 0
    assert second.released(7) == 3, "nothing uses the backing any more"
    assert second.released(7) == 0
    assert Openings(memory).get(7) is None


def test_it_does_not_grow_without_end(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openings, "_COMPACT_LINES", 100)
    account = Openings(memory)
    account.opened(1, 5)
    for _ in range(1000):
        account.opened(2, 0)
        account.released(2)
    assert os.fstat(memory).st_size < 100 * 24
    assert Openings(memory).get(1) == Opening(5, 1)
