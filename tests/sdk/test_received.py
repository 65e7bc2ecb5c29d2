"""Arrays that were received are sent on in their file, as long as nobody has changed them."""

import ctypes
import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farcall.sdk import pages, received, shared_memory
from farcall.sdk.values import Payload, dumps, loads

numpy = pytest.importorskip("numpy", reason="numpy is not installed")

if not os.path.exists("/proc/self/pagemap"):
    pytest.skip("the kernel does not tell which pages were written", allow_module_level=True)

SIZE = 2 * 1024 * 1024

Ask = Callable[[str, Any], Any]


@pytest.fixture(autouse=True)
def nothing_is_left(no_leaks: None) -> Iterator[None]:
    gc.collect()
    before = len(received._received)  # pyright: ignore[reportPrivateUsage]
    yield
    gc.collect()
    assert len(received._received) == before  # pyright: ignore[reportPrivateUsage]


def array(seed: int = 0, size: int = SIZE) -> Any:
    return numpy.random.default_rng(seed).integers(0, 255, size, dtype=numpy.uint8)


def receive(value: Any) -> tuple[Any, int]:
    """The value as another process would get it, and the file it came in."""
    payload = dumps(value)
    file = inode(payload)
    return loads(*payload), file


def inode(payload: Payload) -> int:
    return os.fstat(payload.fds[0]).st_ino


def test_an_array_goes_on_in_the_file_it_came_in() -> None:
    first, file = receive(array(1))
    second, again = receive(first)
    third, once_more = receive({"key": [second]})
    assert file == again == once_more
    assert (third["key"][0] == array(1)).all()


def test_so_do_several_in_any_order_and_shape() -> None:
    value, file = receive([array(n).reshape(1024, -1) for n in range(3)])
    assert numpy.array_equal(value[2], array(2).reshape(1024, -1))
    (one, two, three), again = receive((value[2], value[0][:, :], value[1]))
    assert again == file
    assert [numpy.array_equal(each, value[n]) for n, each in ((2, one), (0, two), (1, three))] == [True] * 3


def test_a_change_is_sent_and_nobody_elses() -> None:
    original = array(1)
    first, file = receive(original)
    first[SIZE // 2] ^= 1
    second, other = receive(first)
    assert other != file
    assert (second == first).all()
    assert (second != original).sum() == 1
    assert (original == array(1)).all()


def test_what_is_changed_later_is_not_seen() -> None:
    first, _ = receive(array(1))
    payload = dumps(first)
    first[:] = 0
    second = loads(*payload)
    assert (second == array(1)).all()
    second[:] = 1
    assert (first == 0).all()


def _by_pointer(view: Any) -> None:
    ctypes.memset(view.ctypes.data + SIZE - 1, 7, 1)


def _by_read(view: Any) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 100)
        file.seek(0)
        assert file.readinto(view[4096:4196]) == 100


def _by_another_view(view: Any) -> None:
    memoryview(view.view(numpy.uint64))[3] = 3


@pytest.mark.parametrize("change", [_by_pointer, _by_read, _by_another_view])
def test_a_change_by_any_means_is_noticed(change: Callable[[Any], None]) -> None:
    first, file = receive(array(1))
    change(first)
    second, other = receive(first)
    assert other != file
    assert (second == first).all()


def test_most_of_a_file_goes_on_and_little_is_copied() -> None:
    first, file = receive(array(1))
    most, again = receive(first[1000:])
    assert again == file
    assert (most == array(1)[1000:]).all()
    part = dumps(first[: SIZE // 2])
    assert inode(part) != file
    assert os.fstat(part.fds[0]).st_size < SIZE
    part.close()


def test_two_views_of_the_same_bytes_arrive_as_two_arrays() -> None:
    first, _ = receive(array(1))
    (one, two), _ = receive([first[:], first[8:]])
    one[:] = 0
    assert (two == array(1)[8:]).all()


def test_new_arrays_beside_received_ones_are_copied_with_them() -> None:
    first, file = receive(array(1))
    (one, two), other = receive((first, array(2, 100_000)))
    assert other != file
    assert (one == array(1)).all()
    assert (two == array(2, 100_000)).all()


def test_read_only_ones_stay_so() -> None:
    original = array(1)
    original.flags.writeable = False
    first, file = receive(original)
    second, again = receive(first)
    assert file == again
    assert not second.flags.writeable


def test_a_long_pickle_is_written_anew() -> None:
    first, file = receive(array(1))
    (one, text), other = receive((first, b"x" * 100_000))
    assert other != file
    assert (one == array(1)).all()
    assert text == b"x" * 100_000


def test_a_child_sends_its_own_changes() -> None:
    first, file = receive(array(1))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            first[0] ^= 1
            changed, other = receive(first)
            assert other != file
            assert (changed == first).all()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert receive(first)[1] == file


def test_a_file_that_was_sent_on_is_not_written_again(monkeypatch: pytest.MonkeyPatch, peer: Ask) -> None:
    monkeypatch.setattr(shared_memory, "_last_large", shared_memory.monotonic())
    first = peer("echo", array(1))
    second = peer("echo", first)
    del first
    for value in range(2, 6):
        assert (peer("echo", array(value)) == array(value)).all()
        assert (second == array(1)).all()


def test_only_so_many_hold_a_descriptor() -> None:
    values = [receive(array(n)) for n in range(20)]
    sent_on = [receive(value)[1] == file for value, file in values]
    assert sum(sent_on) >= 1
    assert not all(sent_on)
    assert all((receive(value)[0] == array(n)).all() for n, (value, _) in enumerate(values))


def test_where_the_kernel_does_not_tell_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(*arguments: Any, **options: Any) -> Any:
        raise PermissionError

    first, file = receive(array(1))
    monkeypatch.setattr(pages, "open", hidden, raising=False)
    second, other = receive(first)
    assert other != file
    assert (second == array(1)).all()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_is_changed_and_sent_arrives(data: st.DataObject) -> None:
    expected = array(data.draw(st.integers(0, 9)), 3 * SIZE // 2)
    value, _ = receive(expected)
    for _ in range(data.draw(st.integers(1, 5))):
        if data.draw(st.booleans()):
            at, length = data.draw(st.integers(0, len(expected) - 1)), data.draw(st.integers(0, 9000))
            value[at : at + length] += 1
            expected[at : at + length] += 1
        start = data.draw(st.integers(0, 5000))
        value, expected = receive(value[start:])[0], expected[start:]
        assert (value == expected).all()
