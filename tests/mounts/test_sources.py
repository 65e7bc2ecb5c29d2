"""From where missing objects are fetched."""

from pathlib import Path

from farcall.content import Store
from farcall.mounts.lazy.sources import WORKER, Places, Source, open_tiers, set_sources


def titles(tiers: object) -> list[str]:
    return [tier.title for tier in tiers]  # type: ignore[attr-defined]


def test_a_server_and_a_worker_have_sources_of_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert titles(open_tiers(store)) == []
    set_sources(store, [Source("/shelf"), Source("/both")])
    set_sources(store, [Source("unix:/socket#peers"), Source("/both")], WORKER)
    assert titles(open_tiers(store)) == ["the directory /shelf", "the directory /both", "this worker, from peers"]
    set_sources(store, [], WORKER)
    assert titles(open_tiers(store)) == ["the directory /shelf", "the directory /both"]


def test_who_serves_a_store_already_hears_of_another_setting(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    set_sources(store, [Source("/old")])
    places = Places(store)
    assert titles(places) == ["the directory /old"]
    set_sources(store, [Source("/new")])
    assert titles(places) == ["the directory /new"]
    (store.root / "sources").write_text("what nobody can read")
    assert titles(places) == ["the directory /new"]
