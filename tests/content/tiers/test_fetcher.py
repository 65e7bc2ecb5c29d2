"""Fetching: all of a tree, parts of it, once however many want it, and what is wrong with a tier said as it is."""

import hashlib
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from farcall.content import Lease, Store, Tree
from farcall.content.attempts import TransientError
from farcall.content.gc import collect
from farcall.content.tiers import Fetcher, layout
from farcall.content.tiers.directory import DirectoryTier
from farcall.content.tiers.layout import BLOB_BYTES
from farcall.content.tiers.pusher import Pusher, pending
from farcall.content.tiers.store import StoreTier
from farcall.content.verify import verify
from farcall.errors import ConnectionError, CorruptedError, NotFoundError
from tests.content.tiers.conftest import HURRIED, Counting


def _same(one: Store, another: Store, tree: Tree) -> None:
    for digest in tree.digests():
        assert one.read(digest) == another.read(digest)


def _blobs(tier: Counting, kind: str) -> list[Path]:
    return [path for path in (tier.inner.root / kind).rglob("*") if path.is_file()]


def _large(tree: Tree) -> bytes:
    return next(entry.digest for entry in tree if entry.size > BLOB_BYTES)


def _small(tree: Tree) -> bytes:
    return next(entry.digest for entry in tree if 0 < entry.size <= BLOB_BYTES)


def test_a_tree_arrives_as_it_was(
    store: Store, other: Store, other_lease: Lease, tree_id: str, filled: Counting
) -> None:
    fetcher = Fetcher(other, [filled], timing=HURRIED)
    sizes: list[int] = []
    fetched = fetcher.fetch_tree(other_lease, tree_id, sizes.append)
    tree = other.tree(tree_id)
    _same(store, other, tree)
    assert fetched.objects == len(tree.digests())
    assert fetched.object_bytes == sum(sizes) == sum({entry.digest: entry.size for entry in tree}.values())
    assert fetched.blobs < 10 < fetched.objects, "small files come together"
    assert sum(fetched.by_tier.values()) == fetched.received_bytes
    assert other.path_of(_large(tree)).stat().st_mode & 0o777 == 0o755
    filled.asked.clear()
    assert fetcher.fetch_tree(other_lease, tree_id).blobs == 0
    assert not filled.asked
    assert not list((other.root / "downloads").iterdir())
    fetcher.close()


def test_what_was_fetched_is_kept_and_collected_as_what_was_made(other: Store, tree_id: str, filled: Counting) -> None:
    fetcher = Fetcher(other, [filled], timing=HURRIED)
    with other.lease("test") as lease:
        fetcher.fetch_tree(lease, tree_id)
        collect(other)
        assert not verify(other).damaged
        other.put_record("images", "one", trees=[tree_id])
    collect(other)
    assert not verify(other).damaged
    assert other.tree(tree_id)
    other.delete_record("images", "one")
    collect(other)
    assert other.statistics().objects == other.statistics().trees == 0
    assert not list((other.root / "indexes").iterdir())
    fetcher.close()


def test_only_what_is_asked_for_is_fetched(other_lease: Lease, other: Store, tree_id: str, filled: Counting) -> None:
    fetcher = Fetcher(other, [filled], timing=HURRIED)
    tree = fetcher.tree(tree_id)
    fetcher.fetch_objects(other_lease, tree_id, [_small(tree)])
    assert other.has(_small(tree))
    assert not other.has(_large(tree))
    assert not other.tree_path(tree_id).exists()
    with pytest.raises(NotFoundError, match="has no object 6666"):
        fetcher.fetch_objects(other_lease, tree_id, [b"f" * 32])
    fetcher.close()


def test_the_end_of_a_large_file_comes_before_its_beginning(
    store: Store, other_lease: Lease, other: Store, tree_id: str, filled: Counting
) -> None:
    fetcher = Fetcher(other, [filled], timing=HURRIED)
    digest = _large(store.tree(tree_id))
    data = store.read(digest)
    filled.asked.clear()
    assert fetcher.read(other_lease, tree_id, digest, len(data) - 5, 100) == data[-5:]
    assert sum(name.startswith("pieces/") for name in filled.asked) == 1
    assert not other.has(digest)
    across = BLOB_BYTES - 3
    assert fetcher.read(other_lease, tree_id, digest, across, 6) == data[across : across + 6]
    assert other.has(digest), "its last piece has come"
    assert fetcher.read(other_lease, tree_id, digest, 7, 8) == data[7:15]
    assert fetcher.read(other_lease, tree_id, digest, len(data), 8) == b""
    assert sum(name.startswith("pieces/") for name in filled.asked) == 3
    small = _small(store.tree(tree_id))
    assert fetcher.read(other_lease, tree_id, small, 1, 3) == store.read(small)[1:4]
    fetcher.close()


def test_a_large_file_that_arrived_in_part_is_gone_on_with(
    store: Store, other: Store, tree_id: str, filled: Counting
) -> None:
    digest = _large(store.tree(tree_id))
    with other.lease("test") as lease:
        first = Fetcher(other, [filled], timing=HURRIED)
        first.read(lease, tree_id, digest, 0, 1)
        first.close()
    collect(other)
    filled.asked.clear()
    with other.lease("test") as lease:
        second = Fetcher(other, [filled], timing=HURRIED)
        second.fetch_objects(lease, tree_id, [digest])
        assert sum(name.startswith("pieces/") for name in filled.asked) == 2
        assert other.read(digest) == store.read(digest)
        second.close()


def test_threads_that_want_the_same_wait_for_one_download(other: Store, tree_id: str, filled: Counting) -> None:
    fetchers = [Fetcher(other, [filled], timing=HURRIED) for _ in range(3)]
    with ThreadPoolExecutor(6) as pool, other.lease("test") as lease:
        list(pool.map(lambda number: fetchers[number % 3].fetch_tree(lease, tree_id), range(6)))
        assert other.tree(tree_id)
    content = [name for name in filled.asked if name.startswith(("packs/", "pieces/"))]
    assert len(content) == len(set(content))
    for fetcher in fetchers:
        fetcher.close()


def _fetch_in_a_process(store: Path, tier: Path, tree_id: str, log: Path) -> None:
    counting = Counting(DirectoryTier(tier))
    here = Store(store)
    fetcher = Fetcher(here, [counting], timing=HURRIED)
    with here.lease("test") as lease:
        fetcher.fetch_tree(lease, tree_id)
    fetcher.close()
    log.write_text("\n".join(counting.asked))


def test_processes_that_want_the_same_wait_for_one_download(
    tmp_path: Path, store: Store, other: Store, tree_id: str, filled: Counting
) -> None:
    context = multiprocessing.get_context("spawn")
    logs = [tmp_path / f"log-{number}" for number in range(3)]
    processes = [
        context.Process(target=_fetch_in_a_process, args=(other.root, filled.inner.root, tree_id, log)) for log in logs
    ]
    with other.lease("test") as lease:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        lease.keep_tree(tree_id)
        _same(store, other, other.tree(tree_id))
    content = [name for log in logs for name in log.read_text().split() if name.startswith(("packs/", "pieces/"))]
    assert len(content) == len(set(content))


def test_what_a_tier_lacks_or_has_wrong_is_asked_of_the_next(
    tmp_path: Path, store: Store, other: Store, other_lease: Lease, tree_id: str, filled: Counting
) -> None:
    wrong = Counting(DirectoryTier(tmp_path / "wrong"))
    for kind in ("packs", "pieces", "indexes", "trees"):
        for number, path in enumerate(_blobs(filled, kind)):
            name = str(path.relative_to(filled.inner.root))
            if number % 2 == 0 or kind in ("indexes", "trees"):
                wrong.inner.put(name, path.read_bytes()[:-1] + b"~")
    fetcher = Fetcher(other, [wrong, filled], timing=HURRIED)
    fetched = fetcher.fetch_tree(other_lease, tree_id)
    assert set(fetched.by_tier) == {filled.title}
    _same(store, other, other.tree(tree_id))
    fetcher.close()


def test_what_is_wrong_everywhere_never_gets_into_the_store(
    other: Store, other_lease: Lease, tree_id: str, filled: Counting
) -> None:
    [path, *_] = _blobs(filled, "packs")
    right = path.read_bytes()
    path.write_bytes(right[:-1] + b"~")
    fetcher = Fetcher(other, [filled], timing=HURRIED)
    with pytest.raises(CorruptedError, match=r"cannot be fetched.*packs/"):
        fetcher.fetch_tree(other_lease, tree_id)
    assert not other.tree_path(tree_id).exists()
    path.write_bytes(right)
    fetcher.fetch_tree(other_lease, tree_id)
    assert not verify(other).damaged
    fetcher.close()


def test_pieces_that_are_right_and_make_another_file_are_refused(
    store: Store, other: Store, other_lease: Lease, tree_id: str, filled: Counting
) -> None:
    """An index that lies: its pieces are what it says they are, and not what the file is made of."""
    index = layout.stored_index(store, tree_id)
    assert index is not None
    [large] = index.large
    other_piece = hashlib.sha256(bytes(BLOB_BYTES)).digest()
    lie = layout.Index(index.packs, (layout.Large(large.digest, large.size, other_piece + large.pieces[32:]),))
    filled.inner.put(layout.index_name(tree_id), layout.encode_blob(layout.encode_index(lie)))
    filled.inner.put(lie.large[0].piece(0).name, layout.encode_blob(bytes(BLOB_BYTES)))
    fetcher = Fetcher(other, [filled], timing=HURRIED)
    with pytest.raises(CorruptedError, match="arrived as another one"):
        fetcher.fetch_tree(other_lease, tree_id)
    assert not other.has(large.digest)
    assert not other.tree_path(tree_id).exists()
    fetcher.close()


@pytest.mark.parametrize("lie", ["lacks an object", "another size", "other pieces"])
def test_an_index_that_lies_is_asked_for_again(
    store: Store, other: Store, other_lease: Lease, tree_id: str, filled: Counting, lie: str
) -> None:
    """When there is a right one in its place, nothing is left of it."""
    right = layout.stored_index(store, tree_id)
    assert right is not None
    [large], [pack, *packs] = right.large, right.packs
    match lie:
        case "lacks an object":
            wrong = layout.Index(tuple(packs), right.large)
        case "another size":
            wrong = layout.Index((layout.Pack(pack.digests, (pack.sizes[0] + 1, *pack.sizes[1:])), *packs), right.large)
        case _:
            piece = layout.Large(
                large.digest, large.size, hashlib.sha256(bytes(BLOB_BYTES)).digest() + large.pieces[32:]
            )
            wrong = layout.Index(right.packs, (piece,))
            filled.inner.put(piece.piece(0).name, layout.encode_blob(bytes(BLOB_BYTES)))
    filled.inner.put(layout.index_name(tree_id), layout.encode_blob(layout.encode_index(wrong)))
    fetcher = Fetcher(other, [filled], timing=HURRIED)
    with pytest.raises(CorruptedError):
        fetcher.fetch_tree(other_lease, tree_id)
    filled.inner.put(layout.index_name(tree_id), layout.encode_blob(layout.encode_index(right)))
    fetcher.fetch_tree(other_lease, tree_id)
    _same(store, other, other.tree(tree_id))
    fetcher.close()


def test_an_index_is_kept_while_what_nobody_keeps_is_collected(
    other: Store, tree_id: str, filled: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is just being written has no lease. A collection that begins in that moment waits, or leaves it alone."""
    collecting = threading.Thread(target=collect, args=(other,))
    write_file = layout.write_file

    def write(path: str, data: bytes, mode: int) -> None:
        write_file(path, data, mode)
        if "index-" in path:
            collecting.start()
            collecting.join(1.0)

    monkeypatch.setattr(layout, "write_file", write)
    fetcher = Fetcher(other, [filled], timing=HURRIED)
    with other.lease("test") as lease:
        fetcher.fetch_tree(lease, tree_id)
    collecting.join(60)
    fetcher.close()


def test_what_is_nowhere_is_named_with_where_it_was_looked_for(
    other: Store, other_lease: Lease, tree_id: str, filled: Counting
) -> None:
    [path, *_] = _blobs(filled, "pieces")
    path.unlink()
    fetcher = Fetcher(other, [filled], timing=HURRIED)
    with pytest.raises(NotFoundError, match=f"{path.parent.name}/{path.name}.*{filled.title}"):
        fetcher.fetch_tree(other_lease, tree_id)
    with pytest.raises(NotFoundError, match="no other place"):
        Fetcher(other, []).fetch_tree(other_lease, "0" * 64)
    assert fetcher.record("images", "nothing") is None
    fetcher.close()


def test_a_tier_that_fails_for_a_while_is_waited_for(
    other: Store, other_lease: Lease, tree_id: str, filled: Counting
) -> None:
    failures = iter(range(3))

    def fail(name: str) -> None:
        if name.startswith("packs/") and next(failures, None) is not None:
            raise TransientError(ConnectionError, f"{name} broke off")

    filled.before = fail
    fetcher = Fetcher(other, [filled], timing=HURRIED)
    fetcher.fetch_tree(other_lease, tree_id)
    assert not verify(other).damaged

    def always(name: str) -> None:
        raise TransientError(ConnectionError, "the tier is gone")

    filled.before = always
    with pytest.raises(ConnectionError, match=r"the tier is gone \(5 attempts"):
        fetcher.tree("0" * 64)
    fetcher.close()


def test_closing_ends_what_waits(other: Store, other_lease: Lease, tree_id: str, filled: Counting) -> None:
    is_asked, go_on = threading.Event(), threading.Event()

    def wait(name: str) -> None:
        if name.startswith("packs/"):
            is_asked.set()
            go_on.wait()
            raise TransientError(ConnectionError, "not now")

    filled.before = wait
    fetcher = Fetcher(other, [filled])
    with ThreadPoolExecutor(2) as pool:
        fetching = pool.submit(fetcher.fetch_tree, other_lease, tree_id)
        assert is_asked.wait(30)
        closing = pool.submit(fetcher.close)
        go_on.set()
        with pytest.raises(ConnectionError, match="ending"):
            fetching.result(30)
        closing.result(30)
    with pytest.raises(ConnectionError, match="ending"):
        fetcher.fetch_tree(other_lease, tree_id)


def test_a_store_is_a_tier(store: Store, other: Store, other_lease: Lease, tree_id: str) -> None:
    store.put_record("images", "one", trees=[tree_id], data={"a": 1})
    fetcher = Fetcher(other, [StoreTier(store)], timing=HURRIED)
    fetcher.fetch_tree(other_lease, tree_id)
    _same(store, other, other.tree(tree_id))
    record = fetcher.record("images", "one")
    assert record is not None
    assert (record.trees, record.data) == ((tree_id,), {"a": 1})
    assert fetcher.record("images", "two") is None
    # And what was fetched can be fetched from there, in the same packs and pieces.
    third = Store(other.root.parent / "third")
    with third.lease("test") as lease:
        next_fetcher = Fetcher(third, [StoreTier(other)], timing=HURRIED)
        next_fetcher.fetch_tree(lease, tree_id)
        _same(store, third, third.tree(tree_id))
        next_fetcher.close()
    fetcher.close()


@pytest.mark.root("mounts a small file system")
def test_a_full_disk_in_the_middle_is_an_error_and_room_heals_it(
    tmp_path: Path, store: Store, tree_id: str, filled: Counting
) -> None:
    import subprocess

    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", str(mounted)], check=True)
    try:
        from farcall.errors import ResourceExhaustedError

        small = Store(mounted / "store")
        fetcher = Fetcher(small, [filled], timing=HURRIED)
        with small.lease("test") as lease:
            with pytest.raises(ResourceExhaustedError, match="no room"):
                fetcher.fetch_tree(lease, tree_id)
            assert not verify(small).damaged
            subprocess.run(["mount", "-o", "remount,size=64m", str(mounted)], check=True)
            fetcher.fetch_tree(lease, tree_id)
            assert not verify(small).damaged
            _same(store, small, small.tree(tree_id))
        fetcher.close()
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_push_shares_what_is_there_already(
    store: Store, lease: Lease, other: Store, other_lease: Lease, tree_id: str, filled: Counting
) -> None:
    more = lease.add_bytes(os.urandom(1000))
    from farcall.content import Entry

    tree = store.tree(tree_id)
    grown = lease.add_tree([*tree, Entry(b"new", 0o100644, size=1000, digest=more)])
    pusher = Pusher(store, filled, timing=HURRIED)
    pushed = pusher.push_tree(grown)
    assert pushed.blobs == 3, "a pack with the new file, an index, the tree"
    assert pusher.push_tree(grown).blobs == 0
    pusher.close()
    fetcher = Fetcher(other, [filled], timing=HURRIED)
    fetcher.fetch_tree(other_lease, grown)
    _same(store, other, other.tree(grown))
    fetcher.close()


def test_a_push_that_was_cut_short_is_gone_on_with(
    store: Store, other: Store, other_lease: Lease, tree_id: str, tier: Counting
) -> None:
    def fail(name: str) -> None:
        if name.startswith("pieces/"):
            raise ConnectionError("cut off")

    tier.before = fail
    pusher = Pusher(store, tier, timing=HURRIED)
    record = store.put_record("images", "one", trees=[tree_id])
    with pytest.raises(ConnectionError):
        pusher.push_record(record)
    pusher.close()
    assert pending(store, tier.title, [record]) == [record]
    assert not _blobs(tier, "trees")
    done = {name for name in tier.asked if name.startswith("packs/")}
    assert done
    tier.before = lambda name: None
    tier.asked.clear()
    again = Pusher(store, tier, timing=HURRIED)
    again.push_record(record)
    assert pending(store, tier.title, [record]) == []
    changed = store.put_record("images", "one", trees=[tree_id], data={"new": True})
    assert pending(store, tier.title, [changed]) == [changed]
    assert not done & set(tier.asked)
    again.close()
    fetcher = Fetcher(other, [tier], timing=HURRIED)
    found = fetcher.record("images", "one")
    assert found is not None
    fetcher.fetch_tree(other_lease, found.trees[0])
    fetcher.close()


def test_a_tier_that_was_emptied_gets_all_of_it_again(store: Store, tree_id: str, filled: Counting) -> None:
    import shutil

    shutil.rmtree(filled.inner.root)
    pusher = Pusher(store, filled, timing=HURRIED)
    assert pusher.push_tree(tree_id).blobs > 4
    pusher.close()


def test_objects_of_a_pack_are_put_into_the_store_one_by_one(
    store: Store, other_lease: Lease, other: Store, tree_id: str, filled: Counting
) -> None:
    fetcher = Fetcher(other, [filled], timing=HURRIED)
    digest = _small(store.tree(tree_id))
    pack = fetcher.locate(tree_id).packs[digest]
    unpacked = fetcher.unpack(other_lease, tree_id, pack)
    assert digest in unpacked and other.statistics().objects == 0
    assert unpacked.put(other_lease, digest)
    assert other.read(digest) == store.read(digest) and other.statistics().objects == 1
    assert not unpacked.put(other_lease, digest)
    unpacked.put_all(other_lease)
    assert len(unpacked) == 0
    assert {digest for digest, _, _ in pack.objects()} == {one for one, _, _ in pack.objects() if other.read(one)}
    filled.asked.clear()
    assert len(fetcher.unpack(other_lease, tree_id, pack)) == 0 and not filled.asked
    other.path_of(digest).unlink()
    assert list(fetcher.unpack(other_lease, tree_id, pack)) == [digest], "what was lost comes again"
    fetcher.close()
