"""What the server relies on: what is written is read back, also after a restart, and says why when it is not there."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from farcall import errors
from farcall.state import App, Call, Output, StateStore, calls
from farcall.state.writer import Transaction

from .conftest import Store, new_call

LARGE = b"x" * (1024 * 1024 + 1)


def test_apps(store: Store) -> None:
    added = store.run(
        store.state.add_app(App(app_id="ap-2", name="other", state="detached", definition=b"\0d", client_pid=7))
    )
    assert added == App(
        app_id="ap-2", name="other", state="detached", definition=b"\0d", client_pid=7, created_at=store.wall
    )
    store.pass_time(5)
    store.run(store.state.set_app_state("ap-1", "stopping"))
    stopped = store.run(store.state.set_app_state("ap-1", "stopped"))
    assert (stopped.state, stopped.stopped_at) == ("stopped", store.wall)
    assert store.run(store.state.set_app_state("ap-1", "stopped")) == stopped
    store.reopen()
    assert store.run(store.state.apps()) == [stopped, added]
    assert store.run(store.state.app("ap-2")) == added
    with pytest.raises(errors.ConflictError, match="has stopped"):
        store.run(store.state.set_app_state("ap-1", "deployed"))
    with pytest.raises(errors.ConflictError, match="has stopped"):
        store.spawn("fc-1", b"")
    with pytest.raises(errors.AlreadyExistsError):
        store.add_app("ap-2")
    store.run(store.state.set_app_definition("ap-2", b"\0changed"))
    store.reopen()
    assert store.run(store.state.app("ap-2")).definition == b"\0changed"
    for missing in (
        store.state.app("ap-3"),
        store.state.set_app_state("ap-3", "stopped"),
        store.state.set_app_definition("ap-3", b""),
    ):
        with pytest.raises(errors.NotFoundError, match="ap-3"):
            store.run(missing)


@pytest.mark.parametrize("payload", [b"", b"small", b"y" * 100_000, LARGE])
def test_a_call_from_spawn_to_result(store: Store, payload: bytes) -> None:
    call = store.spawn("fc-1", payload)
    assert (call.status, call.num_inputs, call.num_finished, call.created_at) == ("pending", 1, 0, store.wall)
    store.reopen()
    assert store.pending() == {"fc-1": [0]}
    assert store.run(store.state.input_payload("fc-1", 0)) == payload
    assert store.run(store.state.output("fc-1", 0)) is None
    store.pass_time(9)
    assert store.run(store.state.record_output("fc-1", 0, 3, payload + b"!"))
    store.reopen()
    expected = Output(call_id="fc-1", index=0, status=3, payload=payload + b"!", finished_at=store.wall)
    assert store.run(store.state.output("fc-1", 0)) == expected
    assert store.run(store.state.call("fc-1")) == Call(
        call_id="fc-1",
        app_id="ap-1",
        function_id="fu-1",
        function_name="f",
        created_at=store.wall - 9,
        status="done",
        num_inputs=1,
        num_finished=1,
        finished_at=store.wall,
        number=1,
    )
    assert store.pending() == {}
    with pytest.raises(errors.ConflictError, match="done"):
        store.run(store.state.input_payload("fc-1", 0))


def test_the_first_output_wins(store: Store) -> None:
    store.spawn("fc-1", LARGE)

    async def both() -> list[bool]:
        return await asyncio.gather(*(store.state.record_output("fc-1", 0, n, bytes([n]) * len(LARGE)) for n in (1, 2)))

    assert sorted(store.run(both())) == [False, True]
    first = store.run(store.state.output("fc-1", 0))
    assert first is not None
    assert first.payload == bytes([first.status]) * len(LARGE)
    assert not store.run(store.state.record_output("fc-1", 0, 9, b"late"))
    assert store.run(store.state.output("fc-1", 0)) == first
    store.reopen()
    assert store.payload_files() == 1  # neither the loser's nor the input's
    assert store.state.statistics().swept_files == 0


def test_inputs_are_added_in_any_pieces_once_each(store: Store) -> None:
    store.run(store.state.add_call(new_call("fc-1"), []))
    assert store.add_inputs("fc-1", [b"0", b"1"], 0) == [0, 1]
    store.run(store.state.record_output("fc-1", 0, 0, b""))
    store.run(store.state.record_output("fc-1", 1, 0, b""))
    assert store.run(store.state.call("fc-1")).status == "done"
    assert store.add_inputs("fc-1", [b"again", LARGE], 1) == [2]
    assert store.add_inputs("fc-1", [LARGE], 2) == []
    assert store.run(store.state.call("fc-1")).status == "pending"
    assert store.pending() == {"fc-1": [2]}
    assert store.run(store.state.input_payload("fc-1", 2)) == LARGE
    store.reopen()
    assert store.payload_files() == 1


def test_more_pending_than_a_page(store: Store) -> None:
    async def spawn() -> None:
        calls = (store.state.add_call(new_call(f"fc-{n}"), [b"x"]) for n in range(1500))
        await asyncio.gather(*calls, store.state.add_call(new_call("fc-many"), [b"y"] * 2500))

    store.run(spawn())
    store.add_app("ap-2")
    store.spawn("fc-other", b"", app_id="ap-2")
    pending = store.pending()
    assert len(pending) == 1502
    assert pending["fc-many"] == list(range(2500))
    assert store.pending("ap-2") == {"fc-other": [0]}


def test_cancel(store: Store) -> None:
    store.spawn("fc-1", b"0", LARGE, b"2")
    store.run(store.state.mark_running("fc-1", [1]))
    store.run(store.state.record_output("fc-1", 0, 0, b"result"))
    assert store.run(store.state.cancel_call("fc-1")) == 2
    assert store.run(store.state.cancel_call("fc-1")) == 0
    call = store.run(store.state.call("fc-1"))
    assert (call.status, call.num_finished) == ("cancelled", 3)
    assert store.pending() == {}
    assert not store.run(store.state.record_output("fc-1", 1, 0, b"late"))
    found = store.run(store.state.output("fc-1", 0))
    assert found is not None
    assert found.payload == b"result"
    with pytest.raises(errors.InputCancelledError, match="input 1 of call fc-1"):
        store.run(store.state.output("fc-1", 1))
    with pytest.raises(errors.ConflictError, match="cancelled"):
        store.add_inputs("fc-1", [b""], 3)
    with pytest.raises(errors.ConflictError, match="cancelled"):
        store.run(store.state.input_payload("fc-1", 2))
    store.reopen()
    assert store.payload_files() == 0


def test_many_are_cancelled_in_several_writes(store: Store) -> None:
    store.spawn("fc-1", *[b"x"] * 2500)
    store.spawn("fc-2", LARGE)
    groups = store.state.statistics().writer.groups
    assert store.run(store.state.cancel_call("fc-1")) == 2500
    assert store.state.statistics().writer.groups == groups + 3
    call = store.run(store.state.call("fc-1"))
    assert (call.status, call.num_finished) == ("cancelled", 2500)
    assert store.pending() == {"fc-2": [0]}


def test_an_app_that_stops_cancels_all_of_its_calls_large_and_small(store: Store) -> None:
    store.add_app("ap-2")
    store.spawn("fc-other", b"", app_id="ap-2")
    sizes = {f"fc-{n}": size for n, size in enumerate((1, 2500, 1000, 1, *[1] * 150))}
    for call_id, size in sizes.items():
        store.spawn(call_id, *[b"x"] * size)

    async def cancel() -> list[str]:
        return [call_id async for call_id in store.state.cancel_calls("ap-1")]

    assert sorted(store.run(cancel())) == sorted(sizes)
    assert store.pending() == {"fc-other": [0]}
    assert store.run(cancel()) == []


def test_cancelling_that_was_cut_off_is_ended_by_the_next(store: Store) -> None:
    store.add_app("ap-2")
    store.spawn("fc-begun", *[b"x"] * 20)
    store.spawn("fc-kept", b"")
    store.spawn("fc-stopped", b"", b"", app_id="ap-2")
    store.run(store.state.set_app_state("ap-2", "stopped"))
    store.run(store.state.close())
    with contextlib.closing(sqlite3.connect(store.directory / "state.db")) as connection, connection:
        assert calls.cancel(Transaction(connection), "fc-begun", store.wall, limit=5) == (5, False)
    store.reopen()
    assert store.run(store.state.call("fc-begun")).status == "cancelled"
    assert store.pending() == {"fc-kept": [0], "fc-stopped": [0, 1]}  # what has been cancelled never runs
    with pytest.raises(errors.ConflictError, match="cancelled"):
        store.add_inputs("fc-begun", [b""], 20)

    async def go_on() -> list[str]:
        return [call_id async for call_id in store.state.cancel_calls(None)]

    assert sorted(store.run(go_on())) == ["fc-begun", "fc-stopped"]
    assert store.pending() == {"fc-kept": [0]}
    with pytest.raises(errors.InputCancelledError):
        store.run(store.state.output("fc-begun", 19))


def test_attempts_and_losses(store: Store) -> None:
    store.spawn("fc-1", b"")
    assert store.run(store.state.bump_attempt("fc-1", 0, lost=True)) == (0, 1)
    assert store.run(store.state.bump_attempt("fc-1", 0, lost=True)) == (0, 2)
    assert store.run(store.state.bump_attempt("fc-1", 0)) == (1, 0)
    store.run(store.state.mark_running("fc-1", [0]))
    store.reopen()

    async def inputs() -> list[tuple[str, int, int]]:
        return [(i.status, i.attempts, i.losses) async for i in store.state.pending_inputs("fc-1")]

    assert store.run(inputs()) == [("running", 1, 0)]
    assert store.run(store.state.bump_attempt("fc-1", 0, lost=True)) == (1, 1)
    assert store.run(inputs()) == [("pending", 1, 1)]
    store.run(store.state.record_output("fc-1", 0, 0, b""))
    with pytest.raises(errors.ConflictError, match="done"):
        store.run(store.state.bump_attempt("fc-1", 0))


def test_what_is_not_there(store: Store) -> None:
    store.spawn("fc-1", b"")
    state = store.state
    for missing in (
        state.call("fc-2"),
        state.output("fc-2", 0),
        state.input_payload("fc-2", 0),
        state.record_output("fc-2", 0, 0, LARGE),
        state.cancel_call("fc-2"),
        state.add_inputs(new_call("fc-2"), [LARGE], first_index=0),
        state.mark_running("fc-2", [0]),
        state.bump_attempt("fc-2", 0),
        state.output("fc-1", 1),
        state.input_payload("fc-1", 1),
        state.record_output("fc-1", 1, 0, b""),
        state.bump_attempt("fc-1", 1),
        state.add_call(new_call("fc-3", "ap-2"), [b""]),
    ):
        with pytest.raises(errors.NotFoundError):
            store.run(missing)
    with pytest.raises(errors.AlreadyExistsError):
        store.spawn("fc-1", LARGE)
    store.reopen()
    assert store.payload_files() == 0


def test_a_cancelled_coroutine_leaves_a_row_or_no_file(store: Store) -> None:
    async def give_up() -> None:
        task = asyncio.create_task(store.state.add_call(new_call("fc-1"), [LARGE]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    store.run(give_up())
    store.reopen()
    assert store.payload_files() == len(store.pending())
    assert store.state.statistics().swept_files == 0


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    async def use() -> None:
        state = StateStore(tmp_path)
        write = asyncio.ensure_future(state.add_app(App(app_id="ap-1", name="x")))
        await asyncio.sleep(0)
        await state.close()
        await state.close()
        assert (await write).app_id == "ap-1"  # asked for before
        for late in (state.add_app(App(app_id="ap-2", name="x")), state.apps()):
            with pytest.raises(errors.ConnectionError, match="closed"):
                await late

    asyncio.run(use())


def test_statistics(store: Store) -> None:
    store.spawn("fc-1", b"x" * 1000)
    found = store.state.statistics()
    assert (found.writer.operations, found.writer.failures, found.writer.queued) == (2, 0, 0)
    assert found.writer.written_bytes >= 1000
    assert found.database_bytes > 4096
