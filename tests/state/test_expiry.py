"""Results are kept 7 days, then told apart from unknown calls for 30; a clock that jumps throws nothing away."""

import pytest

from farcall.errors import AlreadyExistsError, NotFoundError, OutputExpiredError
from farcall.state.clock import FAR_AHEAD_SECONDS
from farcall.state.store import DAY_SECONDS, RESULTS_KEPT_SECONDS, TOMBSTONES_KEPT_SECONDS

from .conftest import Store, new_call
from .test_store import LARGE

HOUR = 3600.0


def finish(store: Store, call_id: str) -> None:
    store.spawn(call_id, LARGE)
    store.run(store.state.record_output(call_id, 0, 0, LARGE))


def expire(store: Store) -> int:
    return store.run(store.state.expire())


def test_results_expire_then_are_forgotten(store: Store) -> None:
    finish(store, "fc-done")
    store.spawn("fc-pending", b"")
    store.spawn("fc-cancelled", b"")
    store.run(store.state.cancel_call("fc-cancelled"))
    store.run(store.state.add_call(new_call("fc-empty"), []))
    store.pass_time(RESULTS_KEPT_SECONDS)
    assert expire(store) == 0
    store.pass_time(1)
    finish(store, "fc-later")
    assert expire(store) == 3
    state = store.state
    for gone in (
        state.output("fc-done", 0),
        state.call("fc-cancelled"),
        state.input_payload("fc-done", 0),
        state.cancel_call("fc-empty"),
        state.add_inputs(new_call("fc-done"), [b""], first_index=1),
        state.bump_attempt("fc-done", 0),
    ):
        with pytest.raises(OutputExpiredError, match="expired"):
            store.run(gone)
    assert not store.run(state.record_output("fc-done", 0, 0, LARGE))
    with pytest.raises(AlreadyExistsError):
        store.spawn("fc-done", b"")
    assert store.run(state.output("fc-later", 0)) is not None
    assert store.pending() == {"fc-pending": [0]}
    store.reopen()
    assert store.payload_files() == 1
    store.pass_time(TOMBSTONES_KEPT_SECONDS + 1)
    store.run(store.state.expire(0.0))
    with pytest.raises(NotFoundError):
        store.run(store.state.output("fc-done", 0))
    assert store.pending() == {"fc-pending": [0]}


def test_stopped_apps_without_calls_are_dropped(store: Store) -> None:
    for app_id in ("ap-2", "ap-3"):
        store.add_app(app_id)
        store.run(store.state.set_app_state(app_id, "stopped"))
    store.spawn("fc-1", b"")
    store.run(store.state.set_app_state("ap-1", "stopped"))
    store.pass_time(8 * DAY_SECONDS)
    store.add_app("ap-4")
    expire(store)
    assert [app.app_id for app in store.run(store.state.apps())] == ["ap-1", "ap-4"]  # ap-1 has a pending call


def test_a_clock_that_jumps_ahead_drops_nothing_for_an_hour(store: Store) -> None:
    finish(store, "fc-1")
    store.wall += 100 * DAY_SECONDS
    assert expire(store) == 0
    store.wall -= 100 * DAY_SECONDS  # corrected: that is a jump too, and harmless
    store.pass_time(2 * HOUR)
    assert expire(store) == 0
    assert store.run(store.state.output("fc-1", 0)) is not None
    store.wall += 100 * DAY_SECONDS  # this time it is right
    assert expire(store) == 0
    store.pass_time(HOUR)
    assert expire(store) == 1


def test_a_clock_that_is_far_ahead_at_a_start_is_not_believed_at_once(store: Store) -> None:
    finish(store, "fc-1")
    store.run(store.state.close())
    store.wall += FAR_AHEAD_SECONDS + 1
    store.reopen()
    assert expire(store) == 0
    store.pass_time(HOUR)
    assert expire(store) == 1


def test_a_machine_that_was_off_for_a_week_expires_at_once(store: Store) -> None:
    finish(store, "fc-1")
    store.run(store.state.close())
    store.wall += 8 * DAY_SECONDS
    store.reopen()
    assert expire(store) == 1


def test_results_of_a_clock_that_ran_ahead_do_not_stay_for_ever(store: Store) -> None:
    right = store.wall
    store.wall += 3650 * DAY_SECONDS
    finish(store, "fc-1")
    store.wall = right
    assert expire(store) == 0
    store.pass_time(HOUR)
    assert expire(store) == 0
    store.pass_time(RESULTS_KEPT_SECONDS + 1)
    assert expire(store) == 1


def test_above_the_size_the_results_finished_longest_ago_go_first(store: Store) -> None:
    store.spawn("fc-pending", LARGE)
    for number in range(4):
        finish(store, f"fc-{number}")
        store.pass_time(1)
    store.state.results_bytes = 2 * len(LARGE)
    assert expire(store) == 2
    for number in range(2):
        with pytest.raises(OutputExpiredError):
            store.run(store.state.output(f"fc-{number}", 0))
    assert store.run(store.state.output("fc-2", 0)) is not None
    assert expire(store) == 0
    assert store.pending() == {"fc-pending": [0]}
    store.reopen()
    assert store.payload_files() == 3
