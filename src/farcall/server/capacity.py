"""What a worker offers, as the scheduler counts it."""

from __future__ import annotations

from farcall.server.resources import Capacity, Gpus
from farcall.wire.workers import Offer


def of(offer: Offer) -> Capacity:
    """The capacity of a worker that offers so much."""
    return Capacity(
        cpu=offer.cpu,
        memory=offer.memory,
        disk=offer.disk,
        gpus=tuple(Gpus(kind, numbers, memory) for kind, numbers, memory in offer.gpus),
        cpu_overcommit=offer.cpu_overcommit,
    )
