"""`SchedulerPlacement`: a hint where to run."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["SchedulerPlacement"]


class SchedulerPlacement:
    """Where a cloud should run something. Without effect here, where containers run on your own machines."""

    def __init__(
        self,
        region: str | Sequence[str] | None = None,
        zone: str | None = None,
        spot: bool | None = None,
        instance_type: str | Sequence[str] | None = None,
    ) -> None:
        self.region = region
        self.zone = zone
        self.spot = spot
        self.instance_type = instance_type
