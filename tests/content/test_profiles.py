"""Start profiles: merged over starts, and never believed."""

from pathlib import Path

from farcall.content import profiles
from farcall.content.gc import collect
from farcall.content.profiles import WHOLE, Exchange
from farcall.content.store import Store
from farcall.content.tiers import Fetcher
from farcall.content.tiers.directory import DirectoryTier
from farcall.content.tiers.pusher import Pusher
from farcall.content.tree import Entry

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))


def _tree(store: Store) -> str:
    with store.lease("test") as lease:
        tree = lease.add_tree([Entry(b"file", 0o100644, size=3, digest=lease.add_bytes(b"abc"))])
        store.put_record("test", "tree", trees=[tree])
    return tree


def test_starts_are_merged_in_the_order_of_the_first_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    tree = _tree(store)
    assert profiles.read(store, tree).objects == ()
    assert profiles.add(store, tree, [(TWO, WHOLE), (ONE, 4)])
    assert profiles.add(store, tree, [(ONE, 4), (THREE, WHOLE), (ONE, 0)])
    assert not profiles.add(store, tree, [(THREE, WHOLE)])
    assert profiles.read(store, tree).opened == ((TWO, WHOLE), (ONE, 4), (THREE, WHOLE), (ONE, 0))
    assert profiles.read(store, tree).objects == (TWO, ONE, THREE)


def test_what_cannot_be_read_is_no_profile(tmp_path: Path) -> None:
    store = Store(tmp_path)
    tree = _tree(store)
    for wrong in (b"", b"nonsense", b"\x81\xa6opened\x91\x92\xc4\x01a\x00"):
        Path(profiles.path_of(store, tree)).write_bytes(wrong)
        assert profiles.read(store, tree).opened == ()
    assert profiles.add(store, tree, [(ONE, WHOLE)])


def test_a_profile_goes_with_its_tree(tmp_path: Path) -> None:
    store = Store(tmp_path)
    tree = _tree(store)
    profiles.add(store, tree, [(ONE, WHOLE)])
    collect(store)
    assert profiles.read(store, tree).objects == (ONE,)
    store.delete_record("test", "tree")
    collect(store)
    assert not Path(profiles.path_of(store, tree)).exists()
    assert not profiles.add(store, tree, [(ONE, WHOLE)])


def test_what_starts_open_travels_in_packs_of_its_own(tmp_path: Path) -> None:
    """Which have it in its order and nothing else, beside those of the tree."""
    here, there, tier = Store(tmp_path / "here"), Store(tmp_path / "there"), DirectoryTier(tmp_path / "tier")
    with here.lease("test") as lease, there.lease("test") as other:
        digests = [lease.add_bytes(f"file {number}".encode()) for number in range(200)]
        entries = [
            Entry(f"{number:03}".encode(), 0o100644, size=len(f"file {number}"), digest=digest)
            for number, digest in enumerate(digests)
        ]
        tree = lease.add_tree(entries)
        Pusher(here, tier).push_tree(tree)
        other.add_tree(entries, partial=True)

        profiles.add(here, tree, [(digests[7], WHOLE), (digests[3], WHOLE)])
        Exchange(here, [tier]).send(tree)
        assert Exchange(there, [tier]).receive(tree)
        [pack] = profiles.read(there, tree).packs
        assert [digest for digest, _, _ in pack.objects()] == [digests[7], digests[3]]
        fetcher = Fetcher(there, [tier])
        fetcher.unpack(other, tree, pack).put_all(other)
        fetcher.close()
        assert there.read(digests[7]) == b"file 7" and there.statistics().objects == 2

        profiles.add(here, tree, [(digests[5], WHOLE)])
        Exchange(here, [tier]).send(tree)
        first, second = profiles.read(here, tree).packs
        assert first == pack and [digest for digest, _, _ in second.objects()] == [digests[5]]
        assert not Exchange(here, [tier]).receive(tree)

        for digest in digests:  # many small packs become few
            if profiles.add(here, tree, [(digest, WHOLE)]):
                Exchange(here, [tier]).send(tree)
        packs = profiles.read(here, tree).packs
        assert len(packs) < 120
        assert {digest for pack in packs for digest, _, _ in pack.objects()} == set(digests)
