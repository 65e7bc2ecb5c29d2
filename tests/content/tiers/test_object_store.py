"""Object stores: a real one, and one that does everything wrong that a server can."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from farcall.content import Lease, Store
from farcall.content.attempts import Attempts, Timing, TransientError
from farcall.content.tiers import Fetcher, WritableTier
from farcall.content.tiers.places import open_place
from farcall.content.tiers.pusher import Pusher
from farcall.content.verify import verify
from farcall.errors import (
    ConnectionError,
    CorruptedError,
    FarcallError,
    InvalidError,
    NotFoundError,
    PermissionDeniedError,
)
from tests.builder.oci.servers import Answer, Server
from tests.content.tiers.conftest import Counting
from tests.content.tiers.seaweedfs import KEYS, STRANGER, SeaweedFS

# Two attempts, and no more than half a second of silence.
SHORT = Timing(connect=0.5, read=0.5, attempts=2, first_delay=0.01, longest_delay=0.02)
# The same, as often as it takes: on a busy machine a right answer may be silent for as long, too.
STUBBORN = SHORT._replace(attempts=1000)
# Some ten seconds in which nobody answers, at short intervals.
PATIENT = Timing(connect=5.0, read=15.0, attempts=300, first_delay=0.05, longest_delay=0.1)


@pytest.fixture(scope="module")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    server = SeaweedFS(tmp_path_factory.mktemp("seaweedfs"))
    server.start()
    yield server
    server.remove()


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    def use(values: dict[str, str]) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    use(KEYS)
    return use


def test_keys_may_be_in_the_files_that_aws_configure_writes(
    seaweedfs: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*KEYS, "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".aws"
    folder.mkdir()
    keys = "\n".join(f"{name.lower()} = {KEYS[name]}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    other = keys.replace(KEYS["AWS_ACCESS_KEY_ID"], STRANGER["AWS_ACCESS_KEY_ID"])
    (folder / "credentials").write_text(f"[default]\n{other}\n[work]\n{keys}\n")
    (folder / "config").write_text(f"[profile work]\nregion = {KEYS['AWS_REGION']}\n")
    place = "s3://farcall-test/from-files"
    with pytest.raises(PermissionDeniedError):
        _put(open_place(place, seaweedfs.endpoint, PATIENT))
    monkeypatch.setenv("AWS_PROFILE", "work")
    tier = open_place(place, seaweedfs.endpoint, PATIENT)
    _put(tier)
    assert tier.get("packs/00/one") == b"here"


def _put(tier: WritableTier) -> None:
    """As a pusher does: what may pass is tried again."""
    attempts = Attempts(PATIENT, threading.Event())
    while True:
        try:
            return tier.put("packs/00/one", b"here")
        except TransientError as error:
            attempts.failed(error)


def test_s3_has_what_was_pushed(
    seaweedfs: SeaweedFS,
    keys: Callable[[dict[str, str]], None],
    store: Store,
    other: Store,
    other_lease: Lease,
    tree_id: str,
) -> None:
    place = "s3://farcall-test/some/prefix"
    tier = open_place(place, seaweedfs.endpoint, PATIENT)
    pusher = Pusher(store, tier, timing=PATIENT)
    record = store.put_record("images", "one", trees=[tree_id], data={"a": 1})
    assert pusher.push_record(record).blobs > 5
    assert pusher.push_record(record).blobs == 0
    pusher.close()

    fetcher = Fetcher(other, [open_place(place, seaweedfs.endpoint, PATIENT)], timing=PATIENT)
    found = fetcher.record("images", "one")
    assert found is not None and found.data == {"a": 1}
    fetched = fetcher.fetch_tree(other_lease, tree_id)
    assert fetched.by_tier == {f"the object store {place} at {seaweedfs.endpoint}": fetched.received_bytes}
    assert not verify(other).damaged
    assert other.tree(tree_id) == store.tree(tree_id)
    with pytest.raises(NotFoundError, match="has no trees/0000"):
        fetcher.tree("0" * 64)
    fetcher.close()

    keys(STRANGER)
    stranger = Fetcher(other, [open_place(place, seaweedfs.endpoint, PATIENT)], timing=PATIENT)
    with pytest.raises(PermissionDeniedError, match=r"Give the credentials the right .*AWS_ACCESS_KEY_ID"):
        stranger.tree("0" * 64)
    stranger.close()


@pytest.mark.long
def test_a_store_that_is_killed_in_the_middle_and_comes_back(
    seaweedfs: SeaweedFS,
    keys: Callable[[dict[str, str]], None],
    store: Store,
    other: Store,
    other_lease: Lease,
    tree_id: str,
) -> None:
    place = "s3://farcall-test/killed"
    tier = open_place(place, seaweedfs.endpoint, PATIENT)
    pusher = Pusher(store, tier, timing=PATIENT)
    pusher.push_tree(tree_id)
    pusher.close()
    fetcher = Fetcher(other, [tier], timing=PATIENT, threads=1)
    fetcher.tree(tree_id)
    is_killed = threading.Event()

    def kill(size: int) -> None:
        if not is_killed.is_set():
            seaweedfs.kill()
            is_killed.set()

    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(fetcher.fetch_tree, other_lease, tree_id, kill)
        assert is_killed.wait(60)
        seaweedfs.start()
        fetching.result()
    assert not verify(other).damaged
    assert other.tree(tree_id) == store.tree(tree_id)
    fetcher.close()


@pytest.fixture
def hostile(filled: Counting) -> Iterator[Server]:
    """A server with the objects of a tree, which a test can make answer otherwise."""
    server = Server()
    root = filled.inner.root
    for path in root.rglob("*"):
        if path.is_file():
            server.on(f"/bucket/{path.relative_to(root)}", _right(path.read_bytes()))
    yield server
    server.close()


def _right(body: bytes) -> Answer:
    return Answer(200, body, {"ETag": '"1"', "Last-Modified": "Thu, 26 Nov 2026 12:00:00 GMT"})


def _pack(server: Server, filled: Counting) -> tuple[str, bytes]:
    """The path of a pack on the server, and what it should be."""
    path = next(path for path in sorted((filled.inner.root / "packs").rglob("*")) if path.is_file())
    return f"/bucket/{path.relative_to(filled.inner.root)}", path.read_bytes()


PASSING = {
    "429": Answer(429, b"slow down"),
    "500": Answer(500),
    "503": Answer(503, b"<Error><Code>SlowDown</Code></Error>"),
    "cut off before": Answer(200, b"x" * 1000, then="cut"),
    "cut off in the middle": Answer(200, b"x" * 100_000, then="cut", sent=50_000),
    "hangs before": Answer(then="hang"),
    "hangs in the middle": Answer(200, b"x" * 100_000, then="hang", sent=50_000),
}


# Each kind takes a second or two: the others run in `make test-long`.
OFTEN = ("503", "cut off in the middle", "hangs before")


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(answer, id=name, marks=() if name in OFTEN else pytest.mark.long)
        for name, answer in PASSING.items()
    ],
)
def test_what_may_pass_is_tried_again_and_has_an_end(
    wrong: Answer,
    hostile: Server,
    keys: Callable[[dict[str, str]], None],
    filled: Counting,
    other: Store,
    other_lease: Lease,
    tree_id: str,
) -> None:
    path, data = _pack(hostile, filled)
    wrong.headers.update(_right(b"").headers)
    hostile.on(path, wrong)
    fetcher = Fetcher(other, [open_place("s3://bucket", hostile.url, SHORT)], timing=SHORT)
    with pytest.raises(ConnectionError, match=r"the object store s3://bucket at .* failed: .*2 attempts"):
        fetcher.fetch_tree(other_lease, tree_id)
    fetcher.close()
    hostile.on(path, wrong, _right(data))
    fetcher = Fetcher(other, [open_place("s3://bucket", hostile.url, STUBBORN)], timing=STUBBORN)
    fetcher.fetch_tree(other_lease, tree_id)
    assert not verify(other).damaged
    fetcher.close()


LASTING: dict[str, tuple[Answer, type[FarcallError], str]] = {
    "403": (Answer(403, b"<Error/>"), PermissionDeniedError, "Give the credentials the right"),
    "404": (Answer(404, b"<Error/>"), NotFoundError, "has no packs/"),
    "wrong bytes": (_right(b"\0" + b"wrong" * 100), CorruptedError, "has other bytes|has .* bytes, more than"),
    "another format": (_right(b"<html>"), CorruptedError, "is no blob of ours"),
    "nothing": (_right(b""), CorruptedError, "is no blob of ours"),
}


@pytest.mark.parametrize(("wrong", "error", "said"), LASTING.values(), ids=LASTING)
def test_what_will_not_pass_is_said_at_once(
    wrong: Answer,
    error: type[FarcallError],
    said: str,
    hostile: Server,
    keys: Callable[[dict[str, str]], None],
    filled: Counting,
    other: Store,
    other_lease: Lease,
    tree_id: str,
) -> None:
    path, data = _pack(hostile, filled)
    hostile.on(path, wrong)
    fetcher = Fetcher(other, [open_place("s3://bucket", hostile.url, PATIENT)], timing=PATIENT)
    with pytest.raises(error, match=said):
        fetcher.fetch_tree(other_lease, tree_id)
    assert sum(asked.path == path for asked in hostile.asked) == 1
    hostile.on(path, _right(data))
    fetcher.fetch_tree(other_lease, tree_id)
    assert not verify(other).damaged
    fetcher.close()


@pytest.mark.parametrize(
    ("place", "prefix"), [("gs://bucket/some", "/bucket/some%2F"), ("az://bucket/some", "/account/bucket/some/")]
)
def test_other_clouds(place: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes over the line, as Google's and Azure's object stores have it."""
    account = tmp_path / "account.json"
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    account.write_text('{"disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}')
    with closing(Server()) as server:
        path = prefix + ("packs%2F00%2Fone" if place.startswith("gs") else "packs/00/one")
        server.on(path, _right(b"here"))
        tier = open_place(place, f"{server.url}/account" if place.startswith("az") else server.url, PATIENT)
        tier.put("packs/00/one", b"here")
        assert tier.get("packs/00/one") == b"here"
        assert [asked.path for asked in server.asked] == [path, path]
        server.on(path, Answer(403))
        with pytest.raises(PermissionDeniedError, match=f"{place} at .* does not let this machine have packs/00/one"):
            tier.get("packs/00/one")
        with pytest.raises(NotFoundError, match="has no packs/00/two"):
            tier.get("packs/00/two")


def test_a_server_that_is_not_there(keys: Callable[[dict[str, str]], None], other: Store) -> None:
    fetcher = Fetcher(other, [open_place("s3://bucket/prefix", "http://127.0.0.1:9", SHORT)], timing=SHORT)
    with pytest.raises(ConnectionError, match=r"s3://bucket/prefix at http://127.0.0.1:9 failed.*2 attempts"):
        fetcher.tree("0" * 64)
    fetcher.close()


def test_a_setting_that_is_no_place(tmp_path: Path) -> None:
    for wrong in ("bucket", "ftp://bucket", "s3://", "s3://key:secret@bucket", "file://host/path", "relative/path"):
        with pytest.raises(InvalidError, match=r"is no (object store|directory)"):
            open_place(wrong)
    with pytest.raises(InvalidError, match="is no endpoint"):
        open_place("s3://bucket", "localhost:9000")
    assert open_place(f"file://{tmp_path}").title == f"the directory {tmp_path}"
