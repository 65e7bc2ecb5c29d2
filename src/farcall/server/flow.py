"""Flow: how far the results of a map are ahead of its consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farcall.server.call import Input

PREFETCH_BYTES = 8 * 2**20  # of results that a container is handed the inputs of
_ANY = 2**31


class Flow:
    """The results of one map that have been sent and not been taken, by the bytes of their memory files (what travels
    inside messages is bounded by the number of inputs). While they fill the window, the map's inputs are held back; all
    but the one whose result the consumer waits for, which can be any where it takes them in order.
    """

    __slots__ = ("_held", "_mean", "_untaken", "_wanted", "_window", "ahead", "is_full")

    def __init__(self, window: int) -> None:
        self.is_full = False  # nothing more is to be started for now
        self.ahead = 1  # how many inputs a container may hold that runs one at a time; how large results are is unknown
        self._mean = 0.0  # bytes of a result
        self._window = window
        self._untaken = 0
        self._wanted = -1  # the index of the result that the consumer waits for
        self._held: deque[Input] = deque()

    def __len__(self) -> int:
        """Inputs held back."""
        return len(self._held)

    def __iter__(self) -> Iterator[Input]:
        return iter(self._held)

    def sent(self, count: int, size: int) -> bool:
        """Results of so many bytes are on their way to the consumer. Returns whether they have filled the window."""
        if size or self._mean:
            self._mean = size / count if self.ahead == 1 else 0.7 * self._mean + 0.3 * size / count
        self.ahead = max(2, int(PREFETCH_BYTES / self._mean)) if self._mean else _ANY
        if not size:
            return False
        was_full = self.is_full
        self._untaken += size
        self.is_full = self._untaken >= self._window
        return self.is_full and not was_full

    def taken(self, size: int, wanted: int) -> list[Input]:
        """The consumer has taken so many bytes of them, and waits for the result of an input (-1: of any). Returns the
        inputs that are no longer held back."""
        self._untaken = max(0, self._untaken - size)
        self.is_full = self._untaken >= self._window
        self._wanted = wanted
        if not self.is_full:
            return self.let_go()
        found = [one for one in self._held if one.index == wanted and one.has_no_result]
        for one in found:
            self._held.remove(one)
        return found

    def hold(self, one: Input) -> bool:
        """Whether the input, whose turn it is, is held back from now on."""
        if not self.is_full or one.index == self._wanted:
            return False
        self._held.append(one)
        return True

    def let_go(self) -> list[Input]:
        """All inputs that were held back, and are no longer."""
        found = [one for one in self._held if one.has_no_result]
        self._held.clear()
        return found
