"""Generators: items go out as they are made, as many as their consumer can take. Asynchronous ones are in `loop`."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from farcall.runner.inbox import Credit, Input
from farcall.runner.outbox import Outbox
from farcall.runner.outcomes import NOTHING, Outcome
from farcall.sdk.values import dumps, loads
from farcall.wire import messages


class Host(Protocol):
    """What a generator runs in: the main thread, or one of many."""

    def step_user_code(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """Calls into user code."""
        ...

    def is_stopped(self, each: Input) -> bool:
        """Looks, between items, whether the generator is to be closed."""
        ...

    def wait_for_credit(self, each: Input, credit: Credit) -> None:
        """Waits until there is credit, or the generator is to be closed."""
        ...


def stream(each: Input, call: Callable[..., Any], credit: Credit, outbox: Outbox, host: Host) -> Outcome:
    """Runs a generator to its end. Raises what user code raises."""
    args, kwargs = loads(each.data, each.fds)
    items: Any = None
    count = 0
    try:
        _, items = host.step_user_code(_start, call, args, kwargs)
        del args, kwargs
        while True:
            if credit.items <= 0:
                host.wait_for_credit(each, credit)
            if host.is_stopped(each):
                return messages.OK, NOTHING
            more, item = host.step_user_code(_next, items)
            if not more:
                items = None
                return messages.GENERATOR_DONE, dumps(count)
            credit.items -= 1
            outbox.add_item(each.seq, count, item, monotonic())
            count += 1
    finally:
        # Its `finally` blocks run. What they raise is what the input raises, as elsewhere.
        close = getattr(items, "close", None)
        if close is not None:
            host.step_user_code(close)


def _start(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
    return True, iter(call(*args, **kwargs))


def _next(items: Any) -> tuple[bool, Any]:
    try:
        item = next(items)
    except StopIteration:
        return False, None
    return True, dumps(item, name="item")
