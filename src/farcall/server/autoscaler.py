"""How many containers a pool should have: a pure function of what it sees."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from farcall.spec.function import Scaling

DRAIN_SECONDS = 0.25  # a backlog shorter than this is not worth another container


@dataclass(frozen=True)
class Load:
    """What a pool has to do.

    waiting: inputs not handed to a container
    held: inputs handed to containers
    mean_seconds: how long an input takes, None while unknown
    oldest_seconds: how long the input that runs longest has been running
    """

    waiting: int
    held: int
    mean_seconds: float | None
    oldest_seconds: float


def desired_containers(load: Load, scaling: Scaling) -> int:
    """The number of containers that would work off the load without anybody waiting for long.

    One for each input, unless inputs are known to be so short that fewer containers work the backlog off within
    `DRAIN_SECONDS`. The buffer comes on top while there is load; the bounds hold in any case.
    """
    inputs = load.waiting + load.held
    desired = inputs
    if inputs and load.mean_seconds is not None:
        seconds = max(load.mean_seconds, load.oldest_seconds)
        desired = min(inputs, max(1, ceil(inputs * seconds / DRAIN_SECONDS)))
    if inputs:
        desired += scaling.buffer_containers
    desired = max(desired, scaling.min_containers)
    if scaling.max_containers is not None:
        desired = min(desired, scaling.max_containers)
    return desired
