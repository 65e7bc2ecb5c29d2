"""The store against a model of dicts, through random operations, restarts and the passing of time."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from farcall.errors import ConflictError, InputCancelledError, NotFoundError, OutputExpiredError
from farcall.state.store import DAY_SECONDS, RESULTS_KEPT_SECONDS, TOMBSTONES_KEPT_SECONDS

from .conftest import Store
from .test_store import LARGE

payloads = st.binary(max_size=20) | st.sampled_from([50_000, len(LARGE)]).map(bytes)


@dataclass
class ModelInput:
    payload: bytes
    status: str = "pending"
    attempts: int = 0
    losses: int = 0
    output: tuple[int, bytes] | None = None


@dataclass
class ModelCall:
    created_at: float
    inputs: list[ModelInput] = field(default_factory=list[ModelInput])
    finished_at: float | None = None
    cancelled: bool = False
    expired_at: float | None = None

    def unfinished(self) -> list[int]:
        return [n for n, found in enumerate(self.inputs) if found.status == "pending"]


class StoreMachine(RuleBasedStateMachine):
    calls: Bundle[str] = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.directory.name))
        self.model: dict[str, ModelCall] = {}
        self.forgotten: set[str] = set()

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    @initialize()
    def start(self) -> None:
        self.store.add_app()

    def attempt(self, call_id: str, act: Callable[[], object]) -> object:
        """Act; a call that is gone must be reported as gone."""
        call = self.model.get(call_id)
        try:
            result = act()
        except NotFoundError:
            assert call_id in self.forgotten
        except OutputExpiredError:
            assert call is not None
            assert call.expired_at is not None
        else:
            assert call is not None
            return result
        return None

    def alive(self, call_id: str) -> ModelCall | None:
        call = self.model.get(call_id)
        return call if call is not None and call.expired_at is None else None

    @rule(target=calls, inputs=st.lists(payloads, max_size=3))
    def spawn(self, inputs: list[bytes]) -> str:
        call_id = f"fc-{len(self.model) + len(self.forgotten)}"
        self.store.spawn(call_id, *inputs)
        self.model[call_id] = ModelCall(self.store.wall, [ModelInput(payload) for payload in inputs])
        return call_id

    @rule(call_id=calls, inputs=st.lists(payloads, max_size=3), back=st.integers(min_value=0, max_value=2))
    def add_inputs(self, call_id: str, inputs: list[bytes], back: int) -> None:
        call = self.alive(call_id)
        first = max(0, len(call.inputs) - back) if call else 0
        try:
            added = self.attempt(call_id, lambda: self.store.add_inputs(call_id, inputs, first))
        except ConflictError:
            assert call is not None
            assert call.cancelled
            return
        if call is not None:
            new = [ModelInput(payload) for payload in inputs][len(call.inputs) - first :]
            assert added == list(range(len(call.inputs), len(call.inputs) + len(new)))
            call.inputs += new

    @rule(call_id=calls, index=st.integers(min_value=0, max_value=3), payload=payloads)
    def record_output(self, call_id: str, index: int, payload: bytes) -> None:
        call = self.model.get(call_id)
        state = self.store.state
        try:
            recorded = self.store.run(state.record_output(call_id, index, index, payload))
        except NotFoundError:
            assert call is None or index >= len(call.inputs)
            return
        assert call is not None
        expected = call.expired_at is None and call.inputs[index].status == "pending"
        assert recorded == expected
        if expected:
            call.inputs[index].status = "done"
            call.inputs[index].output = (index, payload)
            call.finished_at = self.store.wall

    @rule(call_id=calls, index=st.integers(min_value=0, max_value=2), lost=st.booleans())
    def bump_attempt(self, call_id: str, index: int, lost: bool) -> None:
        call = self.alive(call_id)
        if call is None or index not in call.unfinished():
            return
        found = call.inputs[index]
        found.attempts, found.losses = (found.attempts, found.losses + 1) if lost else (found.attempts + 1, 0)
        bumped = self.store.run(self.store.state.bump_attempt(call_id, index, lost=lost))
        assert bumped == (found.attempts, found.losses)

    @rule(call_id=calls)
    def cancel(self, call_id: str) -> None:
        call = self.alive(call_id)
        cancelled = self.attempt(call_id, lambda: self.store.run(self.store.state.cancel_call(call_id)))
        if call is None:
            return
        unfinished = call.unfinished()
        assert cancelled == len(unfinished)
        for index in unfinished:
            call.inputs[index].status = "cancelled"
        if not call.cancelled and (unfinished or not call.inputs):
            call.cancelled = True
            call.finished_at = self.store.wall

    @rule(days=st.integers(min_value=1, max_value=20))
    def pass_time_and_expire(self, days: int) -> None:
        self.store.pass_time(days * DAY_SECONDS)
        now = self.store.wall
        expected = 0
        for call_id, call in list(self.model.items()):
            finished = call.created_at if call.finished_at is None else call.finished_at
            if call.expired_at is not None:
                if call.expired_at < now - TOMBSTONES_KEPT_SECONDS:
                    del self.model[call_id]
                    self.forgotten.add(call_id)
            elif not call.unfinished() and finished < now - RESULTS_KEPT_SECONDS:
                call.expired_at = now
                expected += 1
        assert self.store.run(self.store.state.expire()) == expected

    @rule()
    def restart(self) -> None:
        self.store.reopen()
        assert self.store.state.statistics().swept_files == 0

    @rule(call_id=calls)
    def read(self, call_id: str) -> None:
        call = self.alive(call_id)
        state = self.store.state
        if call is None:
            self.attempt(call_id, lambda: self.store.run(state.output(call_id, 0)))
            self.attempt(call_id, lambda: self.store.run(state.call(call_id)))
            return
        status = "cancelled" if call.cancelled else "pending" if call.unfinished() or not call.inputs else "done"
        assert self.store.run(state.call(call_id)).status == status
        for index, expected in enumerate(call.inputs):
            if expected.status == "cancelled":
                try:
                    self.store.run(state.output(call_id, index))
                except InputCancelledError:
                    continue
                raise AssertionError("a cancelled input has no output")
            found = self.store.run(state.output(call_id, index))
            assert (None if found is None else (found.status, found.payload)) == expected.output
            if expected.status == "pending":
                assert self.store.run(state.input_payload(call_id, index)) == expected.payload

    @invariant()
    def pending_calls_are_those_with_unfinished_inputs(self) -> None:
        expected = {call_id: call.unfinished() for call_id, call in self.model.items() if call.expired_at is None}
        assert self.store.pending() == {call_id: found for call_id, found in expected.items() if found}


TestStoreAgainstModel = StoreMachine.TestCase
TestStoreAgainstModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
