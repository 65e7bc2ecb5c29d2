"""`farcall content` as a user sees it."""

import json
from pathlib import Path

import pytest

from farcall.cli.content import size
from farcall.content import Store, Tree
from tests.conftest import Installation


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation.under(tmp_path / "installation", tmp_path / "shared")


@pytest.fixture
def store(tmp_path: Path, installation: Installation) -> Store:
    store = Store(Path(installation.environment["XDG_DATA_HOME"]) / "farcall" / "content" / "local")
    with store.lease("test") as lease:
        lease.add_bytes(b"x" * 10_000)
        store.put_record("images", "im-1", trees=[lease.add_tree(Tree.of([]))])
    return store


def test_stat(installation: Installation, store: Store) -> None:
    shown = installation.farcall("content", "stat").stdout
    assert str(store.root) in shown
    assert "objects               1  12.3 kB" in shown and "records               1  1 images" in shown
    found = json.loads(installation.farcall("content", "stat", "--json").stdout)
    assert (found["objects"], found["record_kinds"], found["quarantined"]) == (1, {"images": 1}, 0)


def test_verify_names_what_is_damaged(installation: Installation, store: Store) -> None:
    assert installation.farcall("content", "verify").stdout == "1 object (10.0 kB) and 1 tree are right\n"
    [path] = store.objects.glob("*/*")
    path.chmod(0o600)
    path.write_bytes(b"y" * 10_000)
    done = installation.farcall("content", "verify", check=False)
    assert done.returncode == 1
    assert f"object {path.parent.name}{path.name}: its 10,000 bytes have another hash" in done.stdout
    assert "1 thing was out of order and is out of use now" in done.stderr
    assert json.loads(installation.farcall("content", "verify", "--json").stdout)["damaged"] == []


def test_gc(installation: Installation, store: Store) -> None:
    assert installation.farcall("content", "gc").stdout == "0 trees and 1 object removed, 12.3 kB freed; 0 B stay\n"
    assert "0 records dropped, 0 trees" in installation.farcall("content", "gc", "--keep", "1.5GiB").stdout
    assert json.loads(installation.farcall("content", "gc", "--json").stdout)["objects"] == 0
    wrong = installation.farcall("content", "gc", "--keep", "much", check=False)
    assert wrong.returncode == 2 and "'much' is no size" in wrong.stderr


def test_push_and_pull(installation: Installation, store: Store, tmp_path: Path) -> None:
    refused = installation.farcall("content", "push", check=False)
    assert refused.returncode != 0 and 'no object store is set: object_store = "s3://bucket/prefix"' in refused.stderr
    assert json.loads(installation.farcall("content", "stat", "--json").stdout)["unshared"] is None

    shelf = {"FARCALL_OBJECT_STORE": str(tmp_path / "shelf")}
    assert json.loads(installation.farcall("content", "stat", "--json", **shelf).stdout)["unshared"] == 1
    pushed = installation.farcall("content", "push", **shelf).stdout
    assert f"1 record pushed: the directory {tmp_path / 'shelf'} has all that was built here" in pushed
    assert "unshared              0  records" in installation.farcall("content", "stat", **shelf).stdout

    other = Installation.under(tmp_path / "other", tmp_path / "elsewhere")
    pulled = other.farcall("content", "pull", "im-1", **shelf).stdout
    assert pulled.startswith("im-1 is here: 0 objects (0 B) fetched in ")
    assert json.loads(other.farcall("content", "stat", "--json").stdout)["record_kinds"] == {"images": 1}
    there = Store(Path(other.environment["XDG_DATA_HOME"]) / "farcall" / "content" / "local")
    [record] = there.records("images")
    there.put_record("images", "im-1", trees=record.trees, data={"compiled": True})
    other.farcall("content", "pull", "im-1", **shelf)
    assert [record.data for record in there.records("images")] == [{"compiled": True}], "what is known here stays"
    missing = other.farcall("content", "pull", "im-2", check=False, **shelf)
    assert missing.returncode != 0 and "has no image im-2. Where it was built, `farcall content push`" in missing.stderr


def test_sizes_for_people() -> None:
    assert [size(number) for number in (0, 999, 1000, 99_449, 123_456, 999_600, 1_500_000_000, 2 * 10**13)] == [
        "0 B", "999 B", "1.0 kB", "99.4 kB", "123 kB", "1.0 MB", "1.5 GB", "20.0 TB"
    ]  # fmt: skip
