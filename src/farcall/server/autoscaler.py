"""How many containers a pool should have: pure functions of what is seen, and when. No clock of its own, no I/O."""

from __future__ import annotations

from collections import deque
from math import ceil, inf
from typing import NamedTuple

from farcall.spec.scaling import Scaling

DRAIN_SECONDS = 0.25  # a backlog shorter than this is not worth another container


class Load(NamedTuple):
    """What a pool has to do."""

    waiting: int
    """Inputs not handed to a container."""
    held: int
    """Inputs handed to containers."""
    mean_seconds: float | None
    """How long an input occupies a container, None while unknown."""
    oldest_seconds: float
    """How long the input that runs longest has been running."""
    per_container: int = 1
    """How many inputs a container is to have at once."""


class Desired(NamedTuple):
    """How many containers a load asks for."""

    for_inputs: int
    """To serve the inputs there are: others' idle containers may be ended for them."""
    total: int
    """With the floor and the buffer."""


class Target(NamedTuple):
    """What to do about a pool."""

    for_inputs: int
    """As `Desired.for_inputs`."""
    start: int
    """So many are to be there now: missing ones are started at once."""
    keep: int
    """So many may stay: of those beyond, the ones that have been idle for the scaledown window are ended."""

    def beside(self, others: int, scaling: Scaling) -> Target:
        """The same beside so many containers that are there and serve nobody; the ceiling holds for all together."""
        most = inf if scaling.max_containers is None else scaling.max_containers
        return Target(*(int(min(count + others, most)) for count in self))


def desired_containers(load: Load, scaling: Scaling) -> Desired:
    """The containers that would work off the load without anybody waiting for long.

    One for each input, or for as many as a container is to have at once, unless inputs are known to be so short that
    fewer containers work the backlog off within `DRAIN_SECONDS`. The buffer comes on top while there is load; the
    bounds hold in any case. More load never asks for fewer.
    """
    inputs = load.waiting + load.held
    if inputs == 0:
        return Desired(0, scaling.min_containers)
    for_inputs = inputs if load.per_container == 1 else ceil(inputs / load.per_container)
    if load.mean_seconds is not None:
        seconds = max(load.mean_seconds, load.oldest_seconds)
        for_inputs = min(for_inputs, max(1, ceil(inputs * seconds / DRAIN_SECONDS)))
    total = max(for_inputs + scaling.buffer_containers, scaling.min_containers)
    if scaling.max_containers is not None:
        for_inputs = min(for_inputs, scaling.max_containers)
        total = min(total, scaling.max_containers)
    return Desired(for_inputs, total)


class Autoscaler:
    """Follows the load of one pool: up at once, in proportion, and down when less has been enough for the whole
    scaledown window. What a load asks for only now and then is therefore kept, and containers neither come and go with
    it nor with the buffer that belongs to it."""

    __slots__ = ("_peaks", "scaling")

    def __init__(self, scaling: Scaling) -> None:
        self.scaling = scaling
        # What was desired and when, each less than the one before it: the first is the most of the window.
        self._peaks: deque[tuple[float, int]] = deque()

    def evaluate(self, load: Load, now: float) -> Target:
        """What to do, `now` (seconds, never less than at the call before)."""
        scaling = self.scaling
        desired = desired_containers(load, scaling)
        peaks = self._peaks
        while peaks and peaks[-1][1] <= desired.total:
            peaks.pop()
        peaks.append((now, desired.total))
        since = now - scaling.scaledown_window
        while peaks[0][0] <= since:
            peaks.popleft()
        keep = peaks[0][1]
        if scaling.max_containers is not None:
            keep = min(keep, scaling.max_containers)  # it may have been lowered since
        return Target(desired.for_inputs, desired.total, keep)
