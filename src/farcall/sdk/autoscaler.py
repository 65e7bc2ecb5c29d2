"""How many containers a function has, and is to have: what can be asked and changed while its app runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from farcall.sdk.asking import Asking, asks
from farcall.sdk.types import FunctionAutoscalerSettings, FunctionCurrentStats
from farcall.spec.scaling import Scaling
from farcall.wire.scaling import PoolStatistics, PoolStats, UpdateAutoscaler

if TYPE_CHECKING:
    from farcall.sdk.calls import Target

UNSET: Any = -1  # the reference API's mark for "as it is", where None means "none"


class Autoscaler:
    """The bounds of one pool of containers: a function's, or that of a class's instance."""

    def __init__(self, target: Target) -> None:
        self.target = target

    @property
    def _display_name(self) -> str:
        return f"{self.target.name}.autoscaler"

    @asks
    def settings(self) -> Asking[FunctionAutoscalerSettings]:
        """The bounds that hold now."""
        return (yield from update(self.target, {}))

    @asks
    def update(
        self,
        *,
        min_containers: int | None = UNSET,
        max_containers: int | None = UNSET,
        buffer_containers: int | None = UNSET,
        scaledown_window: float | None = UNSET,
    ) -> Asking[FunctionAutoscalerSettings]:
        """Changes bounds until the app is deployed again; None is the default of each, for `max_containers` no bound.
        Returns those that hold then. Raises InvalidError for values that cannot be."""
        changes = given(min_containers, max_containers, buffer_containers, scaledown_window, besides=UNSET)
        return (yield from update(self.target, changes))

    def __repr__(self) -> str:
        return f"<farcall autoscaler of {self.target.name}>"


def given(*bounds: float | None, besides: Any = None) -> dict[str, Any]:
    """The bounds, in the order of Scaling's fields, that were given: those that are not `besides`."""
    return {name: value for name, value in zip(Scaling.__struct_fields__, bounds, strict=True) if value != besides}


def update(target: Target, changes: dict[str, Any]) -> Asking[FunctionAutoscalerSettings]:
    """Changes bounds of the target's pool; with no changes it only asks."""
    Scaling().changed(target.name, changes)
    body = yield lambda seq: UpdateAutoscaler(seq, target.function_id, target.params, changes)
    scaling = msgspec.msgpack.decode(body, type=Scaling)
    return FunctionAutoscalerSettings(*msgspec.structs.astuple(scaling))


def current_stats(target: Target) -> Asking[FunctionCurrentStats]:
    """What the target's pool has to do now."""
    body = yield lambda seq: PoolStats(seq, target.function_id, target.params)
    return FunctionCurrentStats(*msgspec.structs.astuple(msgspec.msgpack.decode(body, type=PoolStatistics)))
