"""Admission: how much work may be in memory, and whose goes first when it is more.

What counts are the inputs of `.remote`, `.map` and generators that have no result yet, with their values. Spawned
inputs are acknowledged and wait on disk: they neither count nor go.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from farcall.wire.memory import HeldFiles

SLACK = 64  # this part of a bound is made free at a time, beyond what is needed


class Bound(NamedTuple):
    """The most there may be."""

    inputs: int
    bytes: int


class Holding:
    """Inputs in memory, of one app or (without `whole`) of all: how many, and their bytes with memory files."""

    __slots__ = ("_files", "_whole", "bound", "bytes", "inputs")

    def __init__(self, bound: Bound, whole: Holding | None = None) -> None:
        self.bound = bound
        self.inputs = 0
        self.bytes = 0
        self._whole = whole
        self._files = HeldFiles()

    def add(self, inputs: int, size: int) -> None:
        """So many inputs more (or fewer), with so many bytes inside messages."""
        self.inputs += inputs
        self.bytes += size
        if self._whole is not None:
            self._whole.add(inputs, size)

    def add_file(self, fd: int) -> int:
        """One more input has this memory file; returns what `remove_file` is to be given."""
        before = self._files.bytes
        file = self._files.add(fd)
        self.add(0, self._files.bytes - before)
        return file

    def remove_file(self, file: int) -> None:
        """One input less has it."""
        before = self._files.bytes
        self._files.remove(file)
        self.add(0, self._files.bytes - before)

    @property
    def is_over(self) -> bool:
        """Whether it is more than its bound. A single input never is."""
        return (self.inputs > self.bound.inputs or self.bytes > self.bound.bytes) and self.inputs > 1

    @property
    def excess(self) -> Bound:
        """How much is too much, with some slack."""
        inputs, size = self.inputs - self.bound.inputs, self.bytes - self.bound.bytes
        return Bound(
            inputs + self.bound.inputs // SLACK if inputs > 0 else 0,
            size + self.bound.bytes // SLACK if size > 0 else 0,
        )

    def share(self, of: Bound) -> float:
        """The part it takes of a bound: of the inputs or the bytes, whichever is larger."""
        return max(self.inputs / of.inputs, self.bytes / of.bytes)


def greediest_first(holdings: Iterable[Holding], of: Bound) -> list[Holding]:
    """Who is to give way, one after another."""
    return sorted((one for one in holdings if one.inputs), key=lambda one: one.share(of), reverse=True)
