"""One container as its worker sees it: a real shared page, and a transport that keeps what is sent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from farcall.errors import ContainerCrashedError, FarcallError, StartupTimeoutError
from farcall.launcher.messages import Exited
from farcall.spec.function import Batching, Concurrency, FunctionSpec, Source
from farcall.wire import messages
from farcall.wire.page import SharedPage
from farcall.worker.container import CANCEL_GRACE, Assignment, Container, End, State
from tests.conftest import open_descriptors


class Transport:
    """Keeps what is sent, and its descriptors closed."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.closed = False

    def send(self, message: Any, fds: Any = ()) -> None:
        self.sent.append(message)
        for fd in fds:
            os.close(fd)


class Worker:
    def __init__(self) -> None:
        self.signals: list[int] = []
        self.killed: list[str] = []

    def signal(self, container: Container, number: int) -> None:
        self.signals.append(number)

    def kill(self, container: Container, reason: str) -> None:
        self.killed.append(reason)


class Owner:
    def __init__(self) -> None:
        self.stopping = 0

    def on_stopping(self, container: Container) -> None:
        self.stopping += 1


class Runner:
    """The runner's side of the page."""

    def __init__(self, container: Container) -> None:
        self.page = SharedPage(os.dup(container.page_fd))

    def start(self, seq: int, now: float = 0.0) -> int:
        self.page.start(seq, now)
        return self.page.cancelled(seq)


@contextmanager
def made(**options: Any) -> Iterator[Container]:
    """A container that is ready, of a function with these options."""
    function = FunctionSpec("fu-1", "f", Source("m", "f"), (), **options)
    worker: Any = Worker()
    owner: Any = Owner()
    container = Container(worker, "ta-1", "ap-1", function, b"", owner, 0.0)
    transport: Any = Transport()
    container.transport = transport
    container.state = State.READY
    yield container
    if container.page_fd >= 0:
        container.close()


@pytest.fixture
def container() -> Iterator[Container]:
    with made() as container:
        yield container


@pytest.fixture
def concurrent() -> Iterator[Container]:
    with made(concurrency=Concurrency(500, 500)) as container:
        yield container


@pytest.fixture
def batched() -> Iterator[Container]:
    with made(batching=Batching(4, 100)) as container:
        yield container


def hand(container: Container, *tokens: str, now: float = 0.0, batch: bool = False) -> None:
    container.hand([Assignment(token, "fc-1", "", n, b"x", ()) for n, token in enumerate(tokens)], now, batch=batch)


def sent(container: Container, kind: type) -> list[Any]:
    transport: Any = container.transport
    return [message for message in transport.sent if isinstance(message, kind)]


def test_inputs_of_one_call_travel_in_one_frame(container: Container) -> None:
    hand(container, "a", "b", "c")
    (run,) = sent(container, messages.Run)
    assert [one.seq for one in run.inputs] == [1, 2, 3]
    assert container.holds == 3


def test_large_inputs_travel_in_as_many_frames_as_they_need(container: Container) -> None:
    container.hand([Assignment(n, "fc-1", "", n, bytes(100_000), ()) for n in range(5)], 0.0)
    assert [len(run.inputs) for run in sent(container, messages.Run)] == [2, 2, 1]


def test_descriptors_are_duplicated_for_the_wire(container: Container) -> None:
    mine = os.memfd_create("value")
    before = open_descriptors()
    container.hand([Assignment("a", "fc-1", "", 0, b"x", (mine,))], 0.0)
    assert open_descriptors() <= before
    os.close(mine)  # still there: it was not given away


def test_only_inputs_that_have_not_started_are_taken_back(container: Container) -> None:
    runner = Runner(container)
    hand(container, "a", "b", "c")
    runner.start(1)
    assert container.take_back() == ["b", "c"]
    assert runner.start(2) == SharedPage.REVOKED
    assert container.holds == 1


def test_the_start_of_an_input_beats_its_being_taken_back(container: Container) -> None:
    runner = Runner(container)
    hand(container, "a", "b", "c")
    runner.start(2)
    assert container.take_back() == ["c"]


def test_a_cancelled_input_that_runs_gets_a_signal_and_a_deadline(container: Container) -> None:
    worker: Any = container.worker
    Runner(container).start(1)
    hand(container, "a")
    container.cancel("a", SharedPage.CANCELLED, 100.0)
    assert len(worker.signals) == 1
    assert container.kill_at == 100.0 + CANCEL_GRACE
    container.answered(1)
    assert container.kill_at == 0.0


def test_the_deadline_of_a_cancelled_input_does_not_hit_the_one_behind_it(container: Container) -> None:
    """The first is cancelled and ends in time; so is the third, which waits behind the second."""
    runner = Runner(container)
    hand(container, "a", "b", "c")
    runner.start(1)
    container.cancel("a", SharedPage.CANCELLED, 100.0)
    container.cancel("c", SharedPage.CANCELLED, 100.0)
    container.answered(1)
    assert runner.start(2) == 0
    assert container.kill_at == 0.0
    assert runner.start(3) == SharedPage.CANCELLED


def test_an_input_that_runs_too_long_is_timed_out_once(container: Container) -> None:
    timeout = container.function.timeout
    hand(container, "a")
    Runner(container).start(1, 50.0)
    assert container.check_time(50.0 + timeout - 1) == []
    assert [late.token for late in container.check_time(50.0 + timeout)] == ["a"]
    assert container.check_time(50.0 + timeout + 1) == []


def test_its_owner_hears_once_that_it_ends(container: Container) -> None:
    container.stop(30.0, "scaled down", 100.0)
    container.stop(0.0, "its app stopped", 101.0)
    container.take_no_more()
    assert (container.state, container.owner.stopping) == (State.STOPPING, 1)  # type: ignore[attr-defined]


def test_an_exit_hook_gets_its_whole_grace_right_after_an_answer(container: Container) -> None:
    """The runner has answered and has not yet noted that nothing runs."""
    hand(container, "a")
    Runner(container).start(1)
    container.answered(1)
    container.stop(30.0, "its app stopped", 100.0)
    assert container.kill_at == 130.0
    assert sent(container, messages.Stop)


def test_what_ran_is_told_from_what_did_not(container: Container) -> None:
    hand(container, "a", "b", "c")
    Runner(container).start(2)
    assert container.split() == (["a", "b"], ["c"])


def test_the_last_words_of_a_container_belong_to_the_input_that_ran(container: Container) -> None:
    """They may be read after the container is gone."""
    hand(container, "a", "b")
    Runner(container).start(2)
    container.close()
    last = container.running()
    assert last is not None
    assert last.token == "b"


# --- inputs beside each other


def test_each_input_beside_others_has_its_own_time(concurrent: Container) -> None:
    timeout = concurrent.function.timeout
    runner = Runner(concurrent)
    hand(concurrent, "a", "b", "c")
    runner.start(1, 1.0)
    assert concurrent.check_time(10.0) == []
    runner.start(2, 50.0)
    assert concurrent.check_time(60.0) == []
    assert concurrent.running_seconds(60.0) == 50.0
    assert [late.token for late in concurrent.check_time(10.0 + timeout)] == ["a"]
    assert [late.token for late in concurrent.check_time(60.0 + timeout)] == ["b"]
    assert [(each.seq, each.reason) for each in sent(concurrent, messages.CancelInput)] == [
        (1, SharedPage.TIMED_OUT),
        (2, SharedPage.TIMED_OUT),
    ]


def test_a_long_input_beside_many_short_ones_is_stopped_by_a_frame(concurrent: Container) -> None:
    """Its place on the page is another's by then; and no signal is sent, as it could interrupt any of them."""
    runner = Runner(concurrent)
    slots = runner.page.slots
    assert slots >= 500
    hand(concurrent, "long", *(["short"] * slots))
    for seq in range(1, slots + 1):
        assert runner.start(seq) == 0
        if seq > 1:
            concurrent.answered(seq)
    concurrent.cancel("long", SharedPage.CANCELLED, 100.0)
    assert sent(concurrent, messages.CancelInput)[0].seq == 1
    assert runner.start(slots + 1) == 0
    worker: Any = concurrent.worker
    assert worker.signals == []
    assert concurrent.ending
    assert concurrent.kill_at == 100.0 + CANCEL_GRACE


def test_cancelled_inputs_have_each_their_own_time_to_end(concurrent: Container) -> None:
    hand(concurrent, "a", "b")
    Runner(concurrent).start(2)
    concurrent.cancel("a", SharedPage.CANCELLED, 100.0)
    concurrent.cancel("b", SharedPage.CANCELLED, 101.0)
    concurrent.answered(1)
    assert concurrent.kill_at == 101.0 + CANCEL_GRACE
    concurrent.answered(2)
    assert concurrent.kill_at == 0.0
    assert not concurrent.ending


def test_what_a_blocked_loop_does_not_start_is_taken_back(concurrent: Container) -> None:
    runner = Runner(concurrent)
    hand(concurrent, "a", "b", "c", now=1.0)
    runner.start(1)
    assert concurrent.unstarted_seconds(3.0) == 2.0
    assert concurrent.take_back() == ["b", "c"]
    assert runner.start(2) == SharedPage.REVOKED
    assert concurrent.unstarted_seconds(3.0) == 0.0
    assert concurrent.take_back() == []


def test_all_that_ran_beside_each_other_is_told(concurrent: Container) -> None:
    hand(concurrent, "a", "b", "c", "d")
    Runner(concurrent).start(3)
    concurrent.answered(2)
    assert concurrent.split() == (["a", "c"], ["d"])


def test_raw_output_has_an_owner_where_one_input_runs(concurrent: Container) -> None:
    runner = Runner(concurrent)
    assert concurrent.running() is None
    hand(concurrent, "a", "b", "c")
    runner.start(1)
    alone = concurrent.running()
    assert alone is not None
    assert alone.token == "a"
    runner.start(2)
    assert concurrent.running() is None


# --- batches


def test_a_batch_of_several_calls_is_one(batched: Container) -> None:
    inputs = [Assignment("a", "fc-1", "", 0, b"x", ()), Assignment("b", "fc-2", "", 0, b"x", ())]
    batched.hand(inputs, 0.0, batch=True)
    first, second = sent(batched, messages.Run)
    assert (first.batch, second.batch) == (2, 2)
    assert (batched.holds, batched.occupied) == (2, 1)
    batched.answered(1)
    assert batched.occupied == 1
    batched.answered(2)
    assert batched.occupied == 0


def test_a_running_batch_is_stopped_when_all_of_it_is_cancelled(batched: Container) -> None:
    worker: Any = batched.worker
    hand(batched, "a", "b", "c", batch=True)
    Runner(batched).start(3)
    batched.cancel("a", SharedPage.CANCELLED, 100.0)
    batched.cancel("c", SharedPage.CANCELLED, 100.0)
    assert worker.signals == []
    assert batched.kill_at == 0.0
    batched.cancel("b", SharedPage.CANCELLED, 100.0)
    assert len(worker.signals) == 1
    assert batched.kill_at == 100.0 + CANCEL_GRACE


def test_a_batch_runs_out_of_time_as_a_whole(batched: Container) -> None:
    timeout = batched.function.timeout
    hand(batched, "a", "b", batch=True)
    Runner(batched).start(2, 10.0)
    assert [late.token for late in batched.check_time(10.0 + timeout)] == ["a", "b"]
    worker: Any = batched.worker
    assert len(worker.signals) == 1


def test_the_raw_output_of_a_batch_is_its_first_input_s(batched: Container) -> None:
    hand(batched, "a", "b", batch=True)
    Runner(batched).start(2)
    running = batched.running()
    assert running is not None
    assert running.token == "a"


# --- ends


def ended(
    signal: int | None = 9, error: FarcallError | None = None, out_of_memory: bool = False, disk_exceeded: bool = False
) -> End:
    exited = Exited("ta-1", None if signal else 1, signal, out_of_memory, 0, 0, True, disk_exceeded)
    return End(exited, "", False, error)


def test_who_was_killed_by_somebody() -> None:
    """Not one that we have ended ourselves, for it was not ready in time: the next would take as long."""
    assert ended().killed
    assert not ended(None).killed
    assert not ended(out_of_memory=True).killed
    assert not ended(disk_exceeded=True).killed
    assert not ended(error=StartupTimeoutError("not ready within 1 s")).killed
    assert End(None, "", False, ContainerCrashedError("killed while it was made")).killed
