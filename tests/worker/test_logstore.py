"""Logs of containers: what was appended is read back, whatever the disk or a kill -9 does to the rest."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farcall.errors import InvalidError
from farcall.wire.messages import LogEntry
from farcall.worker.logsegment import read_index
from farcall.worker.logstore import FLUSH_SECONDS, LogStore


def entry(text: str, *, time: float = 1.0, app: str = "ap-1", call: str = "fc-1", **fields: object) -> LogEntry:
    values: dict[str, object] = {"function": "f", "index": 0, "container_id": "ta-1", "stream": "stdout"}
    return LogEntry(time=time, app_id=app, call_id=call, text=text, **(values | fields))  # pyright: ignore[reportArgumentType]


def noise(random: Random, length: int) -> str:
    """Text that does not compress much."""
    return random.randbytes(length // 2).hex()


@contextmanager
def file_size_limit(size: int) -> Generator[None]:
    """No file may grow beyond `size` bytes: writes fail with EFBIG, as with ENOSPC on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


entries = st.builds(
    LogEntry,
    time=st.floats(min_value=0, max_value=4e9),
    app_id=st.sampled_from(["ap-1", "ap-2", "../x", "", "_41_", "A"]),
    function=st.sampled_from(["f", "Model.run"]),
    call_id=st.sampled_from(["", "fc-1", "fc-2"]),
    index=st.integers(min_value=-1, max_value=2**31),
    container_id=st.sampled_from(["ta-1", "ta-2"]),
    stream=st.sampled_from(["stdout", "stderr", "system"]),
    text=st.text(),
)
steps = st.lists(entries | st.sampled_from(["flush", "reopen"]), max_size=40)


@given(steps=steps, segment_bytes=st.sampled_from([1, 300, 10**6]))
@settings(max_examples=60, deadline=None)
def test_what_was_appended_is_read_back_by_app_call_and_container(
    tmp_path_factory: pytest.TempPathFactory, steps: list[LogEntry | str], segment_bytes: int
) -> None:
    directory = tmp_path_factory.mktemp("logs")
    store = LogStore(directory, segment_bytes=segment_bytes)
    for step in steps:
        if isinstance(step, LogEntry):
            store.append(step)
        else:
            store.flush() if step == "flush" else store.close()
        if step == "reopen":
            store = LogStore(directory, segment_bytes=segment_bytes)
    appended = [step for step in steps if isinstance(step, LogEntry)]
    for app_id in {found.app_id for found in appended}:
        expected = [found for found in appended if found.app_id == app_id]
        assert list(store.read(app_id)) == expected
        assert list(store.read(app_id, tail=3)) == expected[-3:]
    for call_id in ("fc-1", "fc-2"):
        expected = [found for found in appended if found.call_id == call_id]
        assert sorted(store.read(call_id), key=repr) == sorted(expected, key=repr)
    in_container = [found for found in appended if found.container_id == "ta-2"]
    assert sorted(store.read("ta-2"), key=repr) == sorted(in_container, key=repr)
    assert len(list(store.read())) == len(appended)
    store.close()


def test_filters(tmp_path: Path) -> None:
    store = LogStore(tmp_path, segment_bytes=1)  # a segment for each flush, so that indexes are used
    for second in range(10):
        call = f"fc-{second % 2}"
        store.append(entry(f"line {second}", time=float(second), call=call, function="ab"[second % 2]))
        store.flush()

    def texts(**query: object) -> list[str]:
        return [found.text[5:] for found in store.read("ap-1", **query)]  # pyright: ignore[reportArgumentType]

    assert texts(since=8) == ["8", "9"]
    assert texts(until=2) == ["0", "1"]
    assert texts(since=3, until=5) == ["3", "4"]
    assert texts(grep="[37]$") == ["3", "7"]
    assert texts(failed_calls={"fc-1"}, until=4) == ["1", "3"]
    assert texts(failed_calls=frozenset[str]()) == []
    assert texts(function="a", since=5) == ["6", "8"]
    assert texts(tail=2) == ["8", "9"]
    assert texts(tail=2, function="a") == ["6", "8"]
    assert texts(tail=0) == []
    assert texts(tail=99) == list("0123456789")
    assert list(store.read("fc-missing")) == []
    with pytest.raises(InvalidError, match="regular expression"):
        store.read(grep="(")
    with pytest.raises(InvalidError, match="negative"):
        store.read(tail=-1)


def test_apps_are_merged_by_time(tmp_path: Path) -> None:
    store = LogStore(tmp_path)
    for second in (1, 2, 3, 4):
        store.append(entry(str(second), time=float(second), app=f"ap-{second % 2}"))
    assert [found.text for found in store.read()] == ["1", "2", "3", "4"]
    assert [found.text for found in store.read(tail=3)] == ["2", "3", "4"]
    assert [found.text for found in store.read("fc-1", tail=1)] == ["4"]


def test_flushes_are_scheduled_once_and_at_once_for_a_flood(tmp_path: Path) -> None:
    scheduled: list[float] = []
    store = LogStore(tmp_path, schedule=lambda delay, flush: scheduled.append(delay))
    for _ in range(10):
        store.append(entry("x"))
    assert scheduled == [FLUSH_SECONDS]
    for _ in range(10):
        store.append(entry("x" * 65536))
    assert scheduled == [FLUSH_SECONDS, 0.0]
    store.flush()
    store.append(entry("x"))
    assert scheduled == [FLUSH_SECONDS, 0.0, FLUSH_SECONDS]


def test_a_flood_that_nobody_flushes_is_dropped_with_a_marker(tmp_path: Path) -> None:
    store = LogStore(tmp_path)
    for _ in range(300):
        store.append(entry("x" * 65536))
    dropped = store.statistics().dropped
    assert 0 < dropped < 100
    found = list(store.read("ap-1"))
    assert len(found) == 300 - dropped + 1
    assert [(e.stream, e.text.split(" log lines")[0]) for e in found if e.stream == "system"] == [
        ("system", f"farcall: {dropped}")
    ]


def test_a_segment_index_knows_its_ids_and_times(tmp_path: Path) -> None:
    store = LogStore(tmp_path, segment_bytes=1)
    for number in (1, 2):
        store.append(entry("x", time=float(number), call=f"fc-{number}"))
        store.flush()
    first, second = sorted(tmp_path.glob("*/*.log"))
    for path, number, other in ((first, 1, 2), (second, 2, 1)):
        index = read_index(path)
        assert index is not None
        assert (index.min_time, index.max_time) == (number, number)
        assert index.may_contain(f"fc-{number}")
        assert index.may_contain("ta-1")
        assert index.may_contain("f")
        assert not index.may_contain(f"fc-{other}")


def test_a_segment_cut_at_any_byte_keeps_what_was_flushed_before(tmp_path: Path) -> None:
    store = LogStore(tmp_path / "logs")
    path = tmp_path / "logs" / "ap-1" / "00000001.log"
    sizes: list[int] = []
    for flush in range(4):
        for line in range(3):
            store.append(entry(f"flush {flush} line {line}"))
        store.flush()
        sizes.append(path.stat().st_size)
    written = list(store.read("ap-1"))
    data = path.read_bytes()
    copy = tmp_path / "copy" / "ap-1" / path.name
    copy.parent.mkdir(parents=True)
    for cut in range(len(data) + 1):
        copy.write_bytes(data[:cut])
        found = list(LogStore(tmp_path / "copy").read("ap-1"))
        assert found == written[: len(found)]
        assert len(found) >= 3 * sum(size <= cut for size in sizes)


def test_a_cut_segment_is_followed_by_a_new_one(tmp_path: Path) -> None:
    store = LogStore(tmp_path)
    for text in ("first", "second"):
        store.append(entry(text))
        store.flush()
    (path,) = tmp_path.glob("*/*.log")
    os.truncate(path, path.stat().st_size - 3)
    store = LogStore(tmp_path)
    store.append(entry("third"))
    texts = [found.text for found in store.read("ap-1")]
    assert (texts[0], texts[-1]) == ("first", "third")


@given(position=st.integers(min_value=0, max_value=400), value=st.integers(min_value=0, max_value=255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_byte_never_breaks_reading(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    directory = tmp_path_factory.mktemp("logs")
    store = LogStore(directory, segment_bytes=1)
    random = Random(0)
    for number in range(3):
        store.append(entry(noise(random, 300), call=f"fc-{number}"))
        store.flush()
    files = sorted(directory.glob("*/*2.*"))
    for file in files:  # the segment in the middle, and its index
        data = bytearray(file.read_bytes())
        data[position % len(data)] = value
        file.write_bytes(data)
    store = LogStore(directory)
    assert {"fc-0", "fc-2"} <= {found.call_id for found in store.read("ap-1")}
    list(store.read("fc-1", since=0.5, function="f"))


APPEND_FOREVER = """
import sys
from pathlib import Path
from farcall.worker.logsegment import LogEntry
from farcall.worker.logstore import LogStore

store = LogStore(Path(sys.argv[1]), segment_bytes=2000)
number = 0
while True:
    for _ in range(7):
        store.append(LogEntry(float(number), "ap-1", "f", "fc-1", 0, "ta-1", "stdout", f"line {number}"))
        number += 1
    store.flush()
    print(number, flush=True)
"""


def test_kill_9_loses_only_what_was_not_flushed(tmp_path: Path) -> None:
    for round_ in range(3):
        process = subprocess.Popen([sys.executable, "-c", APPEND_FOREVER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        printed = [process.stdout.readline() for _ in range(50 * round_ + 20)]
        process.send_signal(signal.SIGKILL)
        printed += process.stdout.read().splitlines(keepends=True)
        flushed = max(int(line) for line in printed if line.endswith(b"\n"))
        process.wait()
        process.stdout.close()
        texts = [found.text for found in LogStore(tmp_path).read("ap-1")]
        last_run = texts[len(texts) - texts[::-1].index("line 0") - 1 :]
        assert last_run == [f"line {number}" for number in range(len(last_run))]
        assert len(last_run) >= flushed


def test_an_app_and_the_whole_are_bounded_and_the_oldest_go_first(tmp_path: Path) -> None:
    random = Random(1)
    clock = iter(range(10**9))
    store = LogStore(
        tmp_path, app_bytes=100_000, total_bytes=250_000, segment_bytes=10_000, now=lambda: float(next(clock))
    )
    for app in range(4):
        for line in range(60):
            store.append(entry(noise(random, 8000), time=float(line), app=f"ap-{app}", call=f"fc-{app}-{line}"))
            store.flush()
        assert len({found.app_id for found in store.read(f"ap-{app}")}) == 1
        assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) <= 250_000
        kept = [found.time for found in store.read(f"ap-{app}")]
        assert kept == [float(line) for line in range(60 - len(kept), 60)]
        assert 5 < len(kept) < 25
    assert list(store.read("ap-0")) == []
    assert not (tmp_path / "ap-0").exists()
    assert store.statistics().disk_bytes <= 250_000
    reopened = LogStore(tmp_path, app_bytes=100_000, total_bytes=250_000)
    assert reopened.statistics().segments == store.statistics().segments
    assert abs(reopened.statistics().disk_bytes - store.statistics().disk_bytes) <= 32 * 4096  # indexes of open ones


def test_more_apps_than_may_be_open_at_once(tmp_path: Path) -> None:
    store = LogStore(tmp_path)
    for round_ in range(2):
        for app in range(100):
            store.append(entry(f"{app} {round_}", app=f"ap-{app}"))
        store.flush()
    for app in (0, 50, 99):
        assert [found.text for found in store.read(f"ap-{app}")] == [f"{app} 0", f"{app} 1"]


def test_output_that_is_not_unicode_is_kept_readable(tmp_path: Path) -> None:
    store = LogStore(tmp_path)
    store.append(entry(b"caf\xe9".decode(errors="surrogateescape")))
    assert [found.text for found in store.read("ap-1")] == ["caf?"]


def test_no_room_drops_lines_with_a_counted_marker(tmp_path: Path) -> None:
    random = Random(2)
    store = LogStore(tmp_path)
    store.append(entry("before"))
    store.flush()
    with file_size_limit(4096):
        for _ in range(3):
            store.append(entry(noise(random, 50_000)))
            store.flush()
    store.append(entry("after"))
    found = list(store.read("ap-1"))
    assert [e.text for e in found if e.stream == "stdout"] == ["before", "after"]
    (marker,) = [e.text for e in found if e.stream == "system"]
    assert marker.startswith("farcall: 3 log lines are missing here (")
    assert store.statistics().dropped == 3


def test_a_folder_that_vanishes_or_cannot_be_written_raises_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    store = LogStore(blocked / "logs")
    store.append(entry("lost"))
    store.flush()
    assert list(store.read("ap-1")) == []
    assert store.statistics().dropped == 1
    blocked.unlink()
    store.append(entry("kept"))
    assert [found.text for found in store.read("ap-1")][-1] == "kept"
    store.close()
