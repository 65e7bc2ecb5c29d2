"""What `concurrent` and `batched` accept, as values, whoever says it: decorators, variants, options of old."""

from __future__ import annotations

from typing import Any

from farcall.errors import InvalidError
from farcall.spec.function import MAX_BATCH, MAX_HELD, MAX_INPUTS, MAX_WAIT_MS, Batching, Concurrency


def whole(where: str, name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value`, where it is a whole number from `low` to `high`. Raises InvalidError, which says what is allowed."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidError(f"{where}: {name}={value!r} is not a whole number")
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"{low} to {high}"
        raise InvalidError(f"{where}: {name}={value} is not {allowed}")
    return value


def concurrency(where: str, max_inputs: Any, target_inputs: Any = None) -> Concurrency:
    """Up to `max_inputs` (1 to 1000) at once; `target_inputs`, None for as many, is what the autoscaler aims at."""
    whole(where, "max_inputs", max_inputs, 1, MAX_INPUTS)
    if target_inputs is None:
        return Concurrency(max_inputs, max_inputs)
    return Concurrency(max_inputs, whole(where, "target_inputs", target_inputs, 1, max_inputs))


def batching(where: str, max_batch_size: Any, wait_ms: Any) -> Batching:
    """Batches of up to `max_batch_size` (1 to 1000), which wait `wait_ms` milliseconds (0 to 600000)."""
    return Batching(
        whole(where, "max_batch_size", max_batch_size, 1, MAX_BATCH), whole(where, "wait_ms", wait_ms, 0, MAX_WAIT_MS)
    )


def check(where: str, concurrency: Concurrency, batching: Batching | None, single_use: bool) -> None:
    """Raises InvalidError for what cannot be had together."""
    if single_use and (concurrency.max_inputs > 1 or batching is not None):
        other = f"max_inputs={concurrency.max_inputs}" if batching is None else "batches"
        raise InvalidError(f"{where}: single_use_containers=True gives each input its own container, so not {other}")
    if batching is not None and concurrency.max_inputs * batching.max_batch_size > MAX_HELD:
        raise InvalidError(
            f"{where}: max_inputs={concurrency.max_inputs} batches of max_batch_size={batching.max_batch_size} at once "
            f"are more than {MAX_HELD:,} inputs in one container"
        )
