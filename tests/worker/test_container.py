"""One container as its worker sees it: a real shared page, and a transport that keeps what is sent."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from farcall.spec.function import FunctionSpec, Source
from farcall.wire import messages
from farcall.wire.page import SharedPage
from farcall.worker.container import CANCEL_GRACE, Assignment, Container, State


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


class Runner:
    """The runner's side of the page."""

    def __init__(self, container: Container) -> None:
        self.page = SharedPage(os.dup(container.page_fd))

    def start(self, seq: int, now: float = 0.0) -> int:
        self.page.start(seq, now)
        return self.page.cancelled(seq)


@pytest.fixture
def container() -> Iterator[Container]:
    function = FunctionSpec("fu-1", "f", Source("m", "f"), ())
    worker: Any = Worker()
    owner: Any = None
    container = Container(worker, "ta-1", "ap-1", function, b"", owner, 0.0)
    transport: Any = Transport()
    container.transport = transport
    container.state = State.READY
    yield container
    if container.page_fd >= 0:
        container.close()


def hand(container: Container, *tokens: str) -> None:
    container.hand([Assignment(token, "fc-1", "", n, b"x", ()) for n, token in enumerate(tokens)])


def sent(container: Container, kind: type) -> list[Any]:
    transport: Any = container.transport
    return [message for message in transport.sent if isinstance(message, kind)]


def test_inputs_of_one_call_travel_in_one_frame(container: Container) -> None:
    hand(container, "a", "b", "c")
    (run,) = sent(container, messages.Run)
    assert [one.seq for one in run.inputs] == [1, 2, 3]
    assert container.holds == 3


def test_large_inputs_travel_in_as_many_frames_as_they_need(container: Container) -> None:
    container.hand([Assignment(n, "fc-1", "", n, bytes(100_000), ()) for n in range(5)])
    assert [len(run.inputs) for run in sent(container, messages.Run)] == [2, 2, 1]


def test_descriptors_are_duplicated_for_the_wire(container: Container) -> None:
    mine = os.memfd_create("value")
    before = len(os.listdir("/proc/self/fd"))
    container.hand([Assignment("a", "fc-1", "", 0, b"x", (mine,))])
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(mine)  # still there: it was not given away


def test_only_inputs_that_have_not_started_are_taken_back(container: Container) -> None:
    runner = Runner(container)
    hand(container, "a", "b", "c")
    runner.start(1)
    assert container.take_back(1) == ["b", "c"]
    assert runner.start(2) == SharedPage.REVOKED
    assert container.holds == 1


def test_the_start_of_an_input_beats_its_being_taken_back(container: Container) -> None:
    runner = Runner(container)
    hand(container, "a", "b", "c")
    runner.start(2)
    assert container.take_back(1) == ["c"]


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
    assert container.check_time(50.0 + timeout - 1) is None
    timed_out = container.check_time(50.0 + timeout)
    assert timed_out is not None
    assert timed_out.token == "a"
    assert container.check_time(50.0 + timeout + 1) is None


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
