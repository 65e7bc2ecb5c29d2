"""How the results of a map hold its inputs back."""

from types import SimpleNamespace
from typing import Any

from farcall.server.call import Input
from farcall.server.flow import PREFETCH_BYTES, Flow


def inputs(*indexes: int) -> Any:
    """Inputs of one call, none of which has a result."""
    call: Any = SimpleNamespace(inputs={})
    call.inputs |= {index: Input(call, index, b"", (), 0.0) for index in indexes}
    return list(call.inputs.values())


def test_nothing_is_held_back_until_the_window_is_full() -> None:
    flow = Flow(100)
    [one] = inputs(1)
    assert not flow.sent(9, 99)
    assert not flow.hold(one)
    assert flow.sent(1, 1)
    assert not flow.sent(1, 1)  # it was full before
    assert flow.hold(one)
    assert len(flow) == 1


def test_what_is_taken_lets_all_go_in_their_order() -> None:
    flow = Flow(10)
    flow.sent(1, 12)
    every = inputs(1, 2, 3)
    assert all(flow.hold(one) for one in every)
    assert flow.taken(2, -1) == []
    assert flow.taken(1, -1) == every
    assert not flow.is_full
    assert len(flow) == 0


def test_the_result_that_the_consumer_waits_for_is_not_held_back() -> None:
    flow = Flow(10)
    flow.sent(1, 15)
    first, second, third = inputs(3, 4, 5)
    assert flow.hold(first)
    assert flow.hold(second)
    assert flow.taken(0, 3) == [first]
    assert not flow.hold(first)  # it was handed out, and comes back
    assert flow.hold(third)
    assert flow.taken(1, 4) == [second]
    assert flow.taken(5, -1) == [third]


def test_cancelled_inputs_are_forgotten() -> None:
    flow = Flow(10)
    flow.sent(1, 10)
    every = inputs(1, 2, 3)
    for one in every:
        flow.hold(one)
    every[0].call.inputs.pop(1)
    assert flow.taken(0, 1) == []
    every[0].call.inputs.pop(2)
    assert flow.let_go() == [every[2]]
    assert len(flow) == 0


def test_more_than_was_sent_cannot_be_taken() -> None:
    flow = Flow(10)
    flow.sent(1, 10)
    flow.taken(2**62, -1)
    assert not flow.sent(1, 9)


def test_a_container_is_handed_no_more_inputs_ahead_than_their_results_may_be_large() -> None:
    flow = Flow(2**30)
    assert flow.ahead == 1  # nothing is known
    flow.sent(4, 4 * 2**20)
    assert flow.ahead == PREFETCH_BYTES // 2**20
    flow.sent(1, 2**28)
    assert flow.ahead == 2
    small = Flow(2**30)
    small.sent(1, 0)
    assert small.ahead > 10_000
