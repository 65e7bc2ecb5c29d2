"""How much work is in memory, and whose goes first."""

import os
import random
from collections.abc import Iterator

import pytest

from farcall.server.admission import SLACK, Bound, Holding, greediest_first
from farcall.wire.memory import to_memory

BOUND = Bound(1000, 2**20)


@pytest.fixture
def files() -> Iterator[list[int]]:
    """Memory files of 64 KiB."""
    made = [to_memory(bytes(65_536)) for _ in range(3)]
    yield made
    for fd in made:
        os.close(fd)


def test_a_memory_file_counts_once_however_many_inputs_have_it(files: list[int]) -> None:
    whole = Holding(BOUND)
    one, other = Holding(BOUND, whole), Holding(BOUND, whole)
    again = os.dup(files[0])
    held = [one.add_file(fd) for fd in (files[0], again, files[1])]
    os.close(again)
    assert one.bytes == whole.bytes == 2 * 65_536
    held_by_other = other.add_file(files[2])
    assert (one.bytes, whole.bytes) == (2 * 65_536, 3 * 65_536)
    for file in held:
        one.remove_file(file)
    assert (one.bytes, whole.bytes) == (0, 65_536)
    other.remove_file(held_by_other)
    assert (other.bytes, whole.bytes) == (0, 0)


def test_a_sparse_file_counts_as_what_it_takes() -> None:
    holding = Holding(BOUND)
    fd = os.memfd_create("sparse")
    os.truncate(fd, 2**40)
    holding.add_file(fd)
    os.close(fd)
    assert holding.bytes == 0


@pytest.mark.parametrize(("inputs", "size", "over"), [(1000, 2**20, False), (1001, 0, True), (2, 2**20 + 1, True)])
def test_bounds(inputs: int, size: int, over: bool) -> None:
    holding = Holding(BOUND)
    holding.add(inputs, size)
    assert holding.is_over is over


def test_one_input_is_accepted_however_large() -> None:
    holding = Holding(BOUND)
    holding.add(1, 2**40)
    assert not holding.is_over


def test_the_excess_is_of_what_is_over() -> None:
    holding = Holding(BOUND)
    holding.add(1010, 5)
    assert holding.excess == (10 + 1000 // SLACK, 0)
    holding.add(-900, 2**20)
    assert holding.excess == (0, 5 + 2**20 // SLACK)


def test_who_has_the_larger_part_of_inputs_or_bytes_is_greedier(rng: random.Random) -> None:
    many, large, few, idle = (Holding(BOUND) for _ in range(4))
    many.add(600, 10)
    large.add(3, 700 * 2**10)
    few.add(100, 2**10)
    every = [many, large, few, idle]
    rng.shuffle(every)
    assert greediest_first(every, BOUND) == [large, many, few]
