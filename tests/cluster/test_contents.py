"""What workers may read of the server's content, and what not."""

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from farcall import errors
from farcall.cluster import contents as contents_module
from farcall.cluster import sharers as sharers_module
from farcall.cluster.contents import Contents
from farcall.content import Entry, Store
from farcall.content.tiers import layout
from farcall.wire import cluster, messages


class Worker:
    """A worker, and its channel for content."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.attach = SimpleNamespace(peer_port=7000)
        self.worker_id, self.address = "wk-1", "10.0.0.1"
        self.held = 0  # it takes what it is sent
        self.answers: asyncio.Queue[Any] = asyncio.Queue()

    def tell_sharers(self, message: Any) -> None: ...

    def send(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        self.answers.put_nowait(message)

    async def read(self, name: str) -> bytes:
        self.contents.answer(self, self, cluster.ReadContent(1, name), ())  # type: ignore[arg-type]
        answer = await asyncio.wait_for(self.answers.get(), 60)
        if isinstance(answer, messages.Failed):
            raise errors.from_code(answer.failure.code, answer.failure.message)
        return answer.body


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "content")


@pytest.fixture
def trees(store: Store) -> Iterator[list[str]]:
    """Trees of one small file each."""
    with store.lease("test") as lease:
        found: list[str] = []
        for number in range(6):
            data = b"%d" % number
            found.append(lease.add_tree([Entry(b"file", 0o100644, size=len(data), digest=lease.add_bytes(data))]))
        yield found


def test_a_container_that_runs_reads_its_tree_after_however_many_others(
    store: Store, trees: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharers_module, "KEPT_TREES", 2)
    first, *others, unasked = trees

    async def test() -> None:
        contents = Contents(store)
        worker: Any = Worker(contents)
        contents.allow(worker, "ta-long", [first])
        for number, tree in enumerate(others):
            contents.allow(worker, f"ta-{number}", [tree])
            contents.forbid(worker, f"ta-{number}")
        assert await worker.read(f"trees/{first}")
        assert await worker.read(f"indexes/{first}")
        for tree in (unasked, others[0]):  # which no container needs, and which was given long ago
            with pytest.raises(errors.PermissionDeniedError):
                await worker.read(f"trees/{tree}")
        contents.forbid(worker, "ta-long")
        with pytest.raises(errors.PermissionDeniedError):
            await worker.read(f"trees/{first}")
        contents.close()

    asyncio.run(test())


def test_who_asks_is_answered_where_there_is_no_descriptor_for_what_was_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker waits for the answer for as long as its lease holds."""

    def to_memory(data: bytes) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(contents_module, "to_memory", to_memory)
    data = os.urandom(1 << 20)
    with store.lease("test") as lease:
        tree = lease.add_tree([Entry(b"file", 0o100644, size=len(data), digest=lease.add_bytes(data))])

        async def test() -> None:
            contents = Contents(store)
            worker: Any = Worker(contents)
            contents.allow(worker, "ta-1", [tree])
            await worker.read(f"indexes/{tree}")
            index = layout.stored_index(store, tree)
            assert index is not None
            with pytest.raises(errors.FarcallError, match=r"could not be sent: .*Too many open files"):
                await worker.read(next(index.names()))
            contents.close()

        asyncio.run(test())
