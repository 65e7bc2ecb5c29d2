"""How many containers a load asks for, and what becomes of it over time."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from farcall.server.autoscaler import DRAIN_SECONDS, Autoscaler, Load, desired_containers
from farcall.spec.scaling import Scaling

loads = st.builds(
    Load,
    waiting=st.integers(0, 5000),
    held=st.integers(0, 5000),
    mean_seconds=st.none() | st.floats(0, 1000),
    oldest_seconds=st.floats(0, 1000),
    per_container=st.integers(1, 100),
)
scalings = st.builds(
    Scaling,
    min_containers=st.integers(0, 5),
    max_containers=st.none() | st.integers(5, 50),
    buffer_containers=st.integers(0, 5),
    scaledown_window=st.floats(2, 3600),
)


# --- one look


@given(loads, scalings)
def test_the_bounds_hold_under_any_load(load: Load, scaling: Scaling) -> None:
    for_inputs, total = desired_containers(load, scaling)
    assert total >= scaling.min_containers
    assert scaling.max_containers is None or total <= scaling.max_containers
    assert 0 <= for_inputs <= total
    assert total <= max(scaling.min_containers, load.waiting + load.held + scaling.buffer_containers)
    assert (for_inputs > 0) == (load.waiting + load.held > 0)


@given(loads, scalings, st.integers(1, 1000), st.integers(1, 1000))
def test_more_load_never_asks_for_fewer(load: Load, scaling: Scaling, waiting: int, held: int) -> None:
    before = desired_containers(load, scaling)
    for more in (
        load._replace(waiting=load.waiting + waiting),
        load._replace(held=load.held + held),
        load._replace(oldest_seconds=load.oldest_seconds + held),
        load._replace(per_container=1),
    ):
        after = desired_containers(more, scaling)
        assert after.for_inputs >= before.for_inputs
        assert after.total >= before.total


@given(st.integers(1, 5000), st.integers(1, 50))
def test_containers_are_in_proportion_to_the_inputs(inputs: int, per_container: int) -> None:
    desired = desired_containers(Load(inputs, 0, None, 0.0, per_container), Scaling())
    assert (desired.total - 1) * per_container < inputs <= desired.total * per_container


def test_nothing_to_do_asks_for_the_floor_without_the_buffer() -> None:
    assert desired_containers(Load(0, 0, None, 0.0), Scaling(buffer_containers=3)) == (0, 0)
    assert desired_containers(Load(0, 0, 1.0, 0.0), Scaling(min_containers=2)) == (0, 2)


def test_the_buffer_comes_on_top_of_the_load_and_under_the_ceiling() -> None:
    assert desired_containers(Load(0, 1, None, 0.0), Scaling(buffer_containers=3)) == (1, 4)
    assert desired_containers(Load(2, 1, None, 0.0), Scaling(buffer_containers=3, max_containers=5)) == (3, 5)
    # The floor is not another buffer: what it holds serves the load.
    assert desired_containers(Load(0, 1, None, 0.0), Scaling(buffer_containers=1, min_containers=5)) == (1, 5)


def test_short_inputs_get_no_more_containers_than_would_help() -> None:
    # 1,000 inputs of 20 us are 20 ms of work: a second container would start after the first had done it.
    assert desired_containers(Load(1000, 0, 20e-6, 0.0), Scaling()) == (1, 1)


def test_an_input_that_turns_out_long_counts_as_long_as_it_has_run() -> None:
    assert desired_containers(Load(100, 0, 20e-6, 10 * DRAIN_SECONDS), Scaling()) == (100, 100)


# --- over time

# What a pool sees: how long since the last look, and how many inputs there are then.
looks = st.lists(st.tuples(st.floats(0.001, 50), st.integers(0, 40)), max_size=60)


@given(scalings, looks)
def test_it_keeps_the_most_of_the_window_and_no_more(scaling: Scaling, seen: list[tuple[float, int]]) -> None:
    """Up at once; down when less has been enough for the whole window."""
    autoscaler = Autoscaler(scaling)
    window: deque[tuple[float, int]] = deque()
    now = 0.0
    for pause, inputs in seen:
        now += pause
        target = autoscaler.evaluate(Load(inputs, 0, None, 0.0), now)
        desired = desired_containers(Load(inputs, 0, None, 0.0), scaling)
        assert (target.for_inputs, target.start) == desired
        window.append((now, desired.total))
        while window[0][0] <= now - scaling.scaledown_window:
            window.popleft()
        assert target.keep == max(total for _, total in window)


@given(scalings, st.integers(1, 40), st.integers(1, 20))
def test_a_load_that_comes_and_goes_within_the_window_moves_nothing(scaling: Scaling, inputs: int, times: int) -> None:
    """With the buffer, which belongs to the load, and would otherwise end and start with each input."""
    autoscaler = Autoscaler(scaling)
    half = scaling.scaledown_window / 2
    first = autoscaler.evaluate(Load(inputs, 0, None, 0.0), 0.0)
    for position in range(1, times):
        load = Load(inputs if position % 2 == 0 else 0, 0, None, 0.0)
        target = autoscaler.evaluate(load, position * half)
        assert target.start <= first.start
        assert target.keep == first.keep


def test_a_window_without_load_keeps_the_floor() -> None:
    autoscaler = Autoscaler(Scaling(min_containers=2, scaledown_window=10))
    assert autoscaler.evaluate(Load(50, 0, None, 0.0), 0.0) == (50, 50, 50)
    assert autoscaler.evaluate(Load(0, 0, None, 0.0), 9.9) == (0, 2, 50)
    assert autoscaler.evaluate(Load(0, 0, None, 0.0), 10.0) == (0, 2, 2)


def test_a_ceiling_that_is_lowered_holds_at_once() -> None:
    autoscaler = Autoscaler(Scaling())
    autoscaler.evaluate(Load(50, 0, None, 0.0), 0.0)
    autoscaler.scaling = Scaling(max_containers=3)
    assert autoscaler.evaluate(Load(50, 0, None, 0.0), 0.1) == (3, 3, 3)
