"""Templates, from which containers are forked, as the scheduler has them: memory, and the first that is given up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from farcall.server.resources import Request

if TYPE_CHECKING:
    from farcall.server.demand import Placement
    from farcall.server.fleet import Fleet


class Templates:
    """The templates of this machine. They hold memory as containers do, while they are there; where a container finds
    no room they are ended, before any that is idle. Starts are slower then, and a template is made again later."""

    def __init__(self, fleet: Fleet, end: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._end = end
        self._held: dict[str, Placement] = {}

    def changed(self, key: str, memory: int) -> None:
        """A template takes so many MiB; 0: it has ended."""
        held = self._held.pop(key, None)
        if held is not None:
            self._fleet.scheduler.release(held)
            self._fleet.leave(held.demand)
            self._fleet.schedule()
        if memory:
            placement = self._fleet.keep("farcall", key, Request(cpu=0, memory=memory), self)
            if placement is None:
                self._end(key)
            else:
                self._held[key] = placement

    def evict(self, placement: Placement) -> None:
        """Its memory is for others."""
        self._end(placement.demand.name)
