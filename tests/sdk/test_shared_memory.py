"""Memory files that are written again: only when nobody can read them, and for a short time."""

import gc
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farcall.sdk import shared_memory
from farcall.sdk.shared_memory import PAGE
from farcall.sdk.values import Payload, dumps, loads

numpy = pytest.importorskip("numpy", reason="numpy is not installed")

LARGE = 2 * 1024 * 1024

Ask = Callable[[str, Any], Any]


@pytest.fixture(autouse=True)
def keeps(no_leaks: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps every large file, as in a program that has sent one a moment ago; the clock is the test's."""
    monkeypatch.setattr(shared_memory, "monotonic", lambda: 0.0)
    monkeypatch.setattr(shared_memory, "_last_large", 0.0)
    yield
    shared_memory.release_kept()


def inode(payload: Payload) -> int:
    return os.fstat(payload.fds[0]).st_ino


def send(value: Any) -> int:
    """Sends and receives a value and forgets it; returns which file it was in."""
    payload = dumps(value)
    number = inode(payload)
    loads(*payload)
    return number


def array(value: int, size: int = LARGE) -> Any:
    return numpy.full(size, value, dtype=numpy.uint8)


@pytest.mark.parametrize("value", [b"x" * LARGE, array(1)])
def test_the_next_value_is_written_over_one_that_nobody_has_any_more(value: Any) -> None:
    assert send(value) == send(value) == send(value)
    assert len(shared_memory.kept) == 1


def test_readers_cannot_write() -> None:
    payload = dumps(b"x" * LARGE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(payload.fds[0], b"y", 0)
    with pytest.raises(OSError, match="Invalid argument"):
        os.ftruncate(payload.fds[0], 10)
    payload.close()


def test_not_while_there_is_a_descriptor() -> None:
    payload = dumps(b"x" * LARGE)
    assert send(b"y" * LARGE) != inode(payload)
    assert loads(*payload) == b"x" * LARGE


def test_not_while_it_is_on_its_way() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        payload = dumps(b"x" * LARGE)
        socket.send_fds(ours, [payload.data], payload.fds)
        payload.close()
        send(b"y" * LARGE)
        data, fds, _, _ = socket.recv_fds(theirs, 1000, 1)
        assert loads(data, fds) == b"x" * LARGE


def test_not_while_there_is_an_array() -> None:
    payload = dumps(array(1))
    first = inode(payload)
    part = loads(*payload)[5:6]
    assert send(array(2)) != first
    assert part[0] == 1
    del part
    gc.collect()
    shared_memory.release_kept()
    assert send(array(3)) == send(array(4))


def test_not_while_another_process_has_it(peer: Ask) -> None:
    for value in range(5):
        assert peer("overwrite", array(value)) == 7 * LARGE
    assert len(shared_memory.kept) == 1
    held = [peer("echo", array(value)) for value in range(5)]
    assert [(each == value).all() for value, each in enumerate(held)] == [True] * 5


def test_not_while_a_child_of_the_receiver_has_it() -> None:
    payload = dumps(array(1))
    first = inode(payload)
    received = loads(*payload)
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            status = int(not (received == 1).all())
        finally:
            os._exit(status)
    os.read(ready[0], 1)
    del received
    gc.collect()
    assert send(array(2)) != first
    os.write(go[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for end in (*ready, *go):
        os.close(end)


def test_a_child_leaves_its_parents_files_alone() -> None:
    send(b"x" * LARGE)
    descriptor = shared_memory.kept[0].descriptor
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert shared_memory.kept == []
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)
            assert loads(*dumps(b"y" * LARGE)) == b"y" * LARGE
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [each.descriptor for each in shared_memory.kept] == [descriptor]


def test_nothing_of_the_former_value_is_left() -> None:
    former = array(255, LARGE)
    first = send(former)
    value = [array(1, LARGE // 2 + 1), array(2, 100_001), b"z" * 70_000]
    payload = dumps(value)
    assert inode(payload) == first
    content = os.pread(payload.fds[0], 2 * LARGE, 0)
    assert b"\xff" * 32 not in content
    assert len(content) < LARGE - PAGE
    again = loads(*payload)
    assert all((ours == theirs).all() for ours, theirs in zip(value[:2], again[:2], strict=True))
    assert again[2] == value[2]


def test_a_much_smaller_value_does_not_take_a_large_file() -> None:
    assert send(array(1, 4 * LARGE)) != send(array(1, LARGE))


def test_large_files_are_written_through_a_mapping(rng: random.Random) -> None:
    """Longer and shorter values over one another, above the size from which on files are mapped."""
    mapped = 0
    for _ in range(12):
        value = [array(rng.randrange(256), rng.randrange(5 * LARGE, 8 * LARGE)), rng.randbytes(rng.randrange(200_000))]
        payload = dumps(value)
        mapped += any(each.mapped is not None for each in shared_memory.kept)
        again = loads(*payload)
        assert (again[0] == value[0]).all()
        assert again[1] == value[1]
        del again
        gc.collect()
    assert mapped >= 10
    assert len(shared_memory.kept) == 1


def test_a_child_does_not_have_the_mapping() -> None:
    def maps() -> int:
        with open("/proc/self/maps") as file:
            return sum(1 for line in file if "farcall-value" in line and "rw-s" in line)

    for value in range(3):
        send(array(value, 4 * LARGE))
    assert maps() == 1
    child = os.fork()
    if child == 0:
        os._exit(maps())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    shared_memory.release_kept()
    assert maps() == 0


def test_files_are_kept_for_a_short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    send(b"x" * LARGE)
    monkeypatch.setattr(shared_memory, "monotonic", lambda: shared_memory.KEEP_SECONDS - 0.1)
    dumps(1)
    assert shared_memory.kept
    monkeypatch.setattr(shared_memory, "monotonic", lambda: shared_memory.KEEP_SECONDS)
    dumps(1)
    assert not shared_memory.kept
    send(b"x" * LARGE)  # the first for a while is one of its own
    assert not shared_memory.kept


def test_only_so_many_files_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = [dumps(b"x" * LARGE) for _ in range(20)]
    assert len(shared_memory.kept) == 16
    for payload in payloads:
        loads(*payload)
    shared_memory.release_kept()
    monkeypatch.setattr(shared_memory, "_KEEP_BYTES", 3 * LARGE)
    payloads = [dumps(b"x" * LARGE) for _ in range(5)]
    assert len(shared_memory.kept) == 2  # a pickle is a little longer than its bytes
    for payload in payloads:
        loads(*payload)


def test_nothing_is_kept_where_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "_keeps", True)  # restored at the end
    send(b"x" * LARGE)
    shared_memory.keep_nothing()
    send(b"x" * LARGE)
    assert shared_memory.kept == []


@pytest.mark.parametrize("refused", ["open", "lease"])
def test_where_the_system_cannot_tell_nothing_is_reused(refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if refused == "lease":

        def always(descriptor: int) -> bool:
            return True

        monkeypatch.setattr(shared_memory, "_is_unread", always)
    else:

        def no_proc(*arguments: Any) -> int:
            raise FileNotFoundError

        monkeypatch.setattr(os, "open", no_proc)
    for value in range(3):
        assert loads(*dumps(bytes([value]) * LARGE)) == bytes([value]) * LARGE
    assert shared_memory.kept == []


def test_threads_send_at_once() -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        choose = random.Random(seed)
        held: list[tuple[int, Any]] = []
        for number in range(60):
            mark = (seed * 60 + number) % 256
            size = choose.randrange(LARGE // 2, 2 * LARGE)
            value = array(mark, size) if choose.random() < 0.5 else bytes([mark]) * size
            held.append((mark, loads(*dumps(value))))
            if choose.random() < 0.7:
                expected, each = held.pop(choose.randrange(len(held)))
                content = numpy.frombuffer(each, dtype=numpy.uint8)
                if not (content == expected).all():
                    wrong.append(expected)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


actions = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 5), st.booleans()),
    st.tuples(st.just("receive"), st.integers(0, 9), st.booleans()),
    st.tuples(st.just("forget"), st.integers(0, 9), st.booleans()),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(actions, max_size=25))
def test_what_is_held_never_changes(steps: list[tuple[str, int, bool]]) -> None:
    """Values that were sent, received and forgotten in any order; each keeps its content for as long as it is held."""
    sent: list[tuple[Any, Payload]] = []
    received: list[tuple[Any, Any]] = []
    for mark, (step, number, as_array) in enumerate(steps):
        if step == "send":
            size = number * LARGE // 3
            sent.append((mark, dumps(array(mark, size) if as_array else bytes([mark]) * size)))
        elif step == "receive" and sent:
            expected, payload = sent.pop(number % len(sent))
            received.append((expected, loads(*payload)))
        elif step == "forget" and received:
            del received[number % len(received)]
        for expected, value in received:
            assert (numpy.frombuffer(value, dtype=numpy.uint8) == expected).all()
    for expected, payload in sent:
        assert (numpy.frombuffer(loads(*payload), dtype=numpy.uint8) == expected).all()
