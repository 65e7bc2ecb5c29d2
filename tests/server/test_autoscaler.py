"""How many containers a load asks for."""

from hypothesis import given
from hypothesis import strategies as st

from farcall.server.autoscaler import DRAIN_SECONDS, Load, desired_containers
from farcall.spec.function import Scaling

loads = st.builds(
    Load,
    waiting=st.integers(0, 5000),
    held=st.integers(0, 5000),
    mean_seconds=st.none() | st.floats(0, 1000),
    oldest_seconds=st.floats(0, 1000),
)
scalings = st.builds(
    Scaling,
    min_containers=st.integers(0, 5),
    max_containers=st.none() | st.integers(5, 50),
    buffer_containers=st.integers(0, 5),
)


@given(loads, scalings)
def test_the_bounds_hold_under_any_load(load: Load, scaling: Scaling) -> None:
    desired = desired_containers(load, scaling)
    assert desired >= scaling.min_containers
    assert scaling.max_containers is None or desired <= scaling.max_containers
    assert desired <= max(scaling.min_containers, load.waiting + load.held + scaling.buffer_containers)


@given(loads, scalings, st.integers(1, 1000))
def test_more_load_never_asks_for_fewer(load: Load, scaling: Scaling, more: int) -> None:
    larger = Load(load.waiting + more, load.held, load.mean_seconds, load.oldest_seconds)
    assert desired_containers(larger, scaling) >= desired_containers(load, scaling)


def test_nothing_to_do_asks_for_the_floor_without_the_buffer() -> None:
    assert desired_containers(Load(0, 0, None, 0.0), Scaling(buffer_containers=3)) == 0
    assert desired_containers(Load(0, 0, 1.0, 0.0), Scaling(min_containers=2)) == 2


def test_inputs_of_unknown_length_get_a_container_each() -> None:
    assert desired_containers(Load(40, 10, None, 0.0), Scaling()) == 50


def test_short_inputs_get_no_more_containers_than_would_help() -> None:
    # 1,000 inputs of 20 us are 20 ms of work: a second container would start after the first had done it.
    assert desired_containers(Load(1000, 0, 20e-6, 0.0), Scaling()) == 1


def test_an_input_that_turns_out_long_counts_as_long_as_it_has_run() -> None:
    assert desired_containers(Load(100, 0, 20e-6, 10 * DRAIN_SECONDS), Scaling()) == 100
