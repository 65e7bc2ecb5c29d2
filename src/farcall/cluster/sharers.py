"""Which workers may have which trees: those whose containers need them, or have needed them since the worker came."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import TYPE_CHECKING

from farcall.wire import cluster
from farcall.wire.workers import NO_PEERS

if TYPE_CHECKING:
    from farcall.cluster.machine import Machine

KEPT_TREES = 256  # of one worker, beyond which it counts no more as one that has those it was given first
_NO_TREES = OrderedDict[str, bool]()


class Sharers:
    """Told to the workers themselves, who give content to each other and have no other way to know who may have it.

    A worker that has had a tree could have kept it: so it stays among those who may have it, and gives it to those who
    come later.
    """

    def __init__(self) -> None:
        self._machines: dict[str, dict[Machine, None]] = {}
        self._trees: dict[Machine, OrderedDict[str, bool]] = {}  # the last ones last, with whether stores may have it

    def trees(self, machine: Machine) -> Collection[str]:
        """What a worker may have."""
        return self._trees.get(machine, _NO_TREES).keys()

    def join(self, machine: Machine, tree_id: str, *, in_stores: bool) -> None:
        """A worker may have a tree from now on."""
        trees = self._trees.setdefault(machine, OrderedDict[str, bool]())
        is_new = tree_id not in trees
        trees[tree_id] = in_stores
        trees.move_to_end(tree_id)
        if not is_new:
            return
        self._machines.setdefault(tree_id, {})[machine] = None
        self._tell(tree_id, in_stores)
        if len(trees) > KEPT_TREES:
            first, was_in_stores = trees.popitem(last=False)
            if machine.attach.peer_port != NO_PEERS:
                machine.tell_sharers(cluster.Sharers(first, was_in_stores, []))
            self._remove(machine, first, was_in_stores)

    def leave(self, machine: Machine) -> None:
        """A worker is gone."""
        for tree_id, in_stores in self._trees.pop(machine, _NO_TREES).items():
            self._remove(machine, tree_id, in_stores)

    def moved(self, machine: Machine) -> None:
        """A worker is somewhere else now."""
        for tree_id, in_stores in self._trees.get(machine, _NO_TREES).items():
            self._tell(tree_id, in_stores)

    def _remove(self, machine: Machine, tree_id: str, in_stores: bool) -> None:
        machines = self._machines[tree_id]
        del machines[machine]
        if machines:
            self._tell(tree_id, in_stores)
        else:
            del self._machines[tree_id]

    def _tell(self, tree_id: str, in_stores: bool) -> None:
        machines = [one for one in self._machines[tree_id] if one.attach.peer_port != NO_PEERS]
        workers = [cluster.Sharer(one.worker_id, one.address, one.attach.peer_port) for one in machines]
        for machine in machines:
            machine.tell_sharers(cluster.Sharers(tree_id, in_stores, workers))
