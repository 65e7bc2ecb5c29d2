"""`Retries`: how failed attempts are repeated."""

from __future__ import annotations

from typing import Any

from farcall.errors import InvalidError
from farcall.spec.function import RetryPolicy

__all__ = ["Retries"]

MAX_RETRIES = 1000


def _in_range(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidError(f"Retries: {name}={value!r} is no number; write one from {low:g} to {high:g}")
    if not low <= value <= high:
        raise InvalidError(f"Retries: {name}={value} is outside {low:g} to {high:g}")
    return value


class Retries:
    """Repeat a failed attempt up to `max_retries` times, after growing delays.

    Retry number n waits `initial_delay * backoff_coefficient ** (n - 1)` seconds, never more than `max_delay`.
    `max_retries` is 0 to 1000, `backoff_coefficient` 1 to 10, `initial_delay` 0 to 60 seconds, `max_delay` above 0 and
    up to 60 seconds.
    """

    def __init__(
        self,
        *,
        max_retries: int,
        backoff_coefficient: float = 2.0,
        initial_delay: float = 1.0,
        max_delay: float = 60.0,
    ) -> None:
        count = _count("Retries: max_retries", max_retries)
        if _in_range("max_delay", max_delay, 0, 60) == 0:
            raise InvalidError(f"Retries: max_delay={max_delay} is not above 0 and up to 60 seconds")
        self.policy = RetryPolicy(
            max_retries=count,
            initial_delay=_in_range("initial_delay", initial_delay, 0, 60),
            backoff_coefficient=_in_range("backoff_coefficient", backoff_coefficient, 1, 10),
            max_delay=max_delay,
        )

    def __repr__(self) -> str:
        policy = self.policy
        return (
            f"Retries(max_retries={policy.max_retries}, backoff_coefficient={policy.backoff_coefficient:g}, "
            f"initial_delay={policy.initial_delay:g}, max_delay={policy.max_delay:g})"
        )


def policy_of(retries: int | Retries | None) -> RetryPolicy:
    """The policy a decorator's `retries=` stands for: a number means that many retries, 1 s apart."""
    if retries is None:
        return RetryPolicy()
    if isinstance(retries, Retries):
        return retries.policy
    return RetryPolicy(max_retries=_count("retries", retries))


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        form = ", or farcall.Retries(...)" if name == "retries" else ""
        raise InvalidError(f"{name}={value!r} is no whole number; write how often to try again, such as 3{form}")
    if not 0 <= value <= MAX_RETRIES:
        raise InvalidError(f"{name}={value} is not 0 to {MAX_RETRIES}")
    return value
