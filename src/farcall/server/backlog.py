"""What waits on disk: the acknowledged inputs of one target that are not in memory yet."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from farcall.state.records import Span

if TYPE_CHECKING:
    from farcall.server.pool import Pool
    from farcall.spec.function import MethodSpec

WINDOW_INPUTS = 1000  # spawned inputs of one target in memory, from when they are loaded until their results are kept
WINDOW_BYTES = 16 * 2**20  # of their arguments; one input may exceed it
PAGE_INPUTS = 500  # loaded at once


class Backlog:
    """The spawned inputs of one target that have no recorded result: most of them on disk, as spans in the order in
    which they were acknowledged, those that are due in memory.

    On disk a hundred thousand calls cost 2.4 MB of memory, and a call with a hundred thousand inputs 24 bytes.
    """

    def __init__(self, pool: Pool, method: MethodSpec) -> None:
        self.pool = pool
        self.method = method
        self.stored = 0  # inputs on disk only
        self.loading = False
        self._held: dict[tuple[str, int], int] = {}  # bytes of those in memory, by call and index
        self._held_bytes = 0
        self._spans = array("q")  # number, first and end of one after another
        self._oldest = 0  # where in it; what is before has been taken

    @property
    def pending(self) -> int:
        """Inputs without a recorded result, wherever they are."""
        return self.stored + len(self._held)

    @property
    def room(self) -> int:
        """How many bytes of inputs may be loaded now."""
        if not self._held:
            return WINDOW_BYTES
        return WINDOW_BYTES - self._held_bytes if len(self._held) + PAGE_INPUTS <= WINDOW_INPUTS else 0

    def takes(self, inputs: int) -> bool:
        """Whether so many new inputs may stay in memory, with none that are older on disk."""
        return not self.stored and len(self._held) + inputs <= WINDOW_INPUTS and self._held_bytes < WINDOW_BYTES

    def hold(self, call_id: str, index: int, size: int) -> None:
        """The input is in memory from now on."""
        self._held[call_id, index] = size
        self._held_bytes += size

    def release(self, call_id: str, index: int) -> None:
        """It is over."""
        self._held_bytes -= self._held.pop((call_id, index), 0)

    def append(self, span: Span) -> None:
        """Inputs on disk, behind all others."""
        self.stored += span.end - span.first
        spans = self._spans
        if len(spans) > self._oldest and spans[-3] == span.number and spans[-1] == span.first:
            spans[-1] = span.end
        else:
            spans.extend(span)

    def oldest(self) -> list[Span]:
        """The spans to load next: no more than a page of inputs."""
        found: list[Span] = []
        at, left = self._oldest, PAGE_INPUTS
        while at < len(self._spans) and left > 0:
            number, first, end = self._spans[at : at + 3]
            found.append(Span(number, first, min(end, first + left)))
            left -= end - first
            at += 3
        return found

    def take(self, count: int) -> None:
        """The first `count` inputs of the oldest span are in memory now, or gone."""
        self.stored -= count
        spans, at = self._spans, self._oldest
        spans[at + 1] += count
        if spans[at + 1] == spans[at + 2]:
            self._oldest += 3
        if self._oldest > len(spans) // 2:
            del spans[: self._oldest]
            self._oldest = 0
