"""Downloads: verified, taken up where they broke off, one at a time for each blob, and an end to all patience."""

import fcntl
import hashlib
import random
import subprocess
import threading
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest

from farcall import errors
from farcall.builder.oci.download import discard, download
from farcall.builder.oci.manifest import Descriptor
from farcall.builder.oci.reference import parse
from farcall.builder.oci.registry import Repository
from farcall.content.attempts import StoppedError, Timing
from tests.builder.oci.conftest import Patience
from tests.builder.oci.images import digest_of
from tests.builder.oci.servers import Answer, Server, ranged

DATA = random.Random(1).randbytes(300_000)
BLOB = Descriptor(digest_of(DATA), len(DATA))
PATH = f"/v2/name/blobs/{BLOB.digest}"


@pytest.fixture
def repository(server: Server, patience: Patience) -> Iterator[Repository]:
    with Repository(parse(f"{server.host}/name"), timing=patience.timing) as made:
        yield made


@pytest.fixture
def hasty(server: Server, patience: Patience) -> Iterator[Repository]:
    """One that soon takes silence for a hang."""
    with Repository(parse(f"{server.host}/name"), timing=patience.hasty) as made:
        yield made


def get(repository: Repository, folder: Path, blob: Descriptor = BLOB) -> bytes:
    file = download(repository, blob, folder, lambda done: None)
    data = file.readall()
    discard(file)
    return data


def cut(sent: int, answer: Answer | None = None) -> Answer:
    """The connection breaks after so many bytes."""
    answer = answer or Answer(200, DATA)
    return Answer(answer.status, answer.body, answer.headers, "cut", sent)


def rest(first: int) -> Answer:
    return Answer(206, DATA[first:], {"Content-Range": f"bytes {first}-{len(DATA) - 1}/{len(DATA)}"})


def test_a_blob_with_its_progress(server: Server, repository: Repository, tmp_path: Path) -> None:
    server.on(PATH, ranged(DATA))
    seen: list[int] = []
    file = download(repository, BLOB, tmp_path / "downloads", seen.append)
    assert file.readall() == DATA
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == len(DATA) and len(seen) > 3
    discard(file)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_download_goes_on_where_it_broke_off(
    server: Server, repository: Repository, tmp_path: Path, patience: Patience
) -> None:
    server.on(PATH, cut(100_000), cut(70_000, rest(100_000)), ranged(DATA))
    assert get(repository, tmp_path) == DATA
    assert [asked.headers.get("range") for asked in server.asked if asked.path == PATH] == [
        None,
        "bytes=100000-",
        "bytes=170000-",
    ]
    assert patience.slept == [0.5, 0.5]  # each time it had got further


def test_a_cut_without_progress_ends_in_an_error_and_the_next_download_goes_on(
    server: Server, repository: Repository, tmp_path: Path, patience: Patience
) -> None:
    server.on(PATH, cut(100_000), cut(0, rest(100_000)))
    with pytest.raises(errors.ConnectionError, match="broke"):
        get(repository, tmp_path)
    assert patience.slept == [0.5, 1.0, 2.0, 4.0]
    server.on(PATH, ranged(DATA))
    assert get(repository, tmp_path) == DATA
    assert server.asked[-1].headers["range"] == "bytes=100000-"


def test_what_is_left_whole_is_not_fetched_again(server: Server, repository: Repository, tmp_path: Path) -> None:
    server.on(PATH, ranged(DATA))
    download(repository, BLOB, tmp_path, lambda done: None).close()
    count = len(server.asked)
    assert get(repository, tmp_path) == DATA
    assert len(server.asked) == count


@pytest.mark.parametrize("left", [b"something else" * 1000, DATA[:5] + b"x", DATA + b"x"])
def test_what_is_left_and_wrong_is_fetched_anew(
    server: Server, repository: Repository, tmp_path: Path, left: bytes
) -> None:
    (tmp_path / BLOB.digest.replace(":", "-")).write_bytes(left)
    server.on(PATH, ranged(DATA))
    assert get(repository, tmp_path) == DATA


def test_a_registry_that_knows_no_ranges_is_asked_for_all(
    server: Server, repository: Repository, tmp_path: Path
) -> None:
    server.on(PATH, cut(100_000), Answer(200, DATA))
    assert get(repository, tmp_path) == DATA


def test_a_range_that_was_not_asked_for(server: Server, repository: Repository, tmp_path: Path) -> None:
    server.on(PATH, cut(100_000), rest(99_999), ranged(DATA))
    assert get(repository, tmp_path) == DATA


def test_no_such_range(server: Server, repository: Repository, tmp_path: Path) -> None:
    server.on(PATH, cut(100_000), Answer(416), ranged(DATA))
    assert get(repository, tmp_path) == DATA


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (DATA[:-1] + b"x", "its 300,000 bytes are sha256:"),
        (DATA[:-1], "ends after 299,999 of 300,000"),
        (DATA + b"x", "more bytes than the image says"),
        (b"", "ends after 0 of 300,000"),
    ],
)
def test_wrong_bytes(server: Server, repository: Repository, tmp_path: Path, sent: bytes, said: str) -> None:
    server.on(PATH, ranged(sent))
    with pytest.raises(errors.CorruptedError, match=f"is not {BLOB.digest}: .*{said}"):
        get(repository, tmp_path)
    server.on(PATH, ranged(DATA))
    assert get(repository, tmp_path) == DATA


def test_wrong_bytes_once(server: Server, repository: Repository, tmp_path: Path) -> None:
    server.on(PATH, Answer(200, b"x" * len(DATA)), ranged(DATA))
    assert get(repository, tmp_path) == DATA


def test_an_empty_blob(repository: Repository, tmp_path: Path) -> None:
    assert get(repository, tmp_path, Descriptor(digest_of(b""), 0)) == b""


def test_a_blob_that_is_not_there(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFoundError, match=f"{BLOB.digest} is not in the registry"):
        get(repository, tmp_path)


def test_a_blob_by_sha512(server: Server, repository: Repository, tmp_path: Path) -> None:
    blob = Descriptor(f"sha512:{hashlib.sha512(DATA).hexdigest()}", len(DATA))
    server.on(f"/v2/name/blobs/{blob.digest}", ranged(DATA))
    assert get(repository, tmp_path, blob) == DATA


def test_a_hang_in_the_middle(server: Server, hasty: Repository, tmp_path: Path) -> None:
    server.on(PATH, Answer(200, DATA, then="hang", sent=1000))
    with pytest.raises(errors.TimeoutError, match=r"sent nothing for 0\.5 s"):
        get(hasty, tmp_path)


def test_a_trickle_is_a_hang(server: Server, patience: Patience, tmp_path: Path) -> None:
    """However often something comes: that it comes in time is the machine's affair, so one attempt must do."""
    server.on(PATH, Answer(200, DATA, then="trickle"))
    timing = patience.timing._replace(read=1.0, attempts=1)
    with (
        Repository(parse(f"{server.host}/name"), timing=timing) as repository,
        pytest.raises(errors.TimeoutError, match=r"less than 1024 bytes a second \(1 attempt"),
    ):
        get(repository, tmp_path)


def test_an_address_of_the_storage_that_ran_out_is_asked_for_anew(
    server: Server, other_server: Server, repository: Repository, tmp_path: Path
) -> None:
    there = {"Location": f"{other_server.url}/storage?key=1"}
    server.on(PATH, Answer(307, headers=there))
    other_server.on("/storage", cut(100_000), Answer(403), ranged(DATA))
    assert get(repository, tmp_path) == DATA
    assert other_server.asked[-1].headers["range"] == "bytes=100000-"


def test_another_process_at_the_same_blob_is_waited_for(server: Server, tmp_path: Path) -> None:
    path = tmp_path / BLOB.digest.replace(":", "-")
    path.write_bytes(DATA)
    server.on(PATH, ranged(DATA))
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waits: list[float] = []

        def sleep(stop: threading.Event, seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                fcntl.flock(other, fcntl.LOCK_SH)  # it is done, and reads

        with Repository(parse(f"{server.host}/name"), timing=Timing(sleep=sleep)) as repository:
            assert get(repository, tmp_path) == DATA
    assert len(waits) == 3
    assert server.asked == []


def test_a_download_that_is_stopped_stops(server: Server, tmp_path: Path) -> None:
    server.on(PATH, ranged(DATA))
    stop = threading.Event()
    files: list[FileIO] = []
    with Repository(parse(f"{server.host}/name"), stop=stop) as repository, pytest.raises(StoppedError):
        files.append(download(repository, BLOB, tmp_path, lambda done: stop.set()))
    with Repository(parse(f"{server.host}/name"), stop=stop) as repository, pytest.raises(StoppedError):
        files.append(download(repository, BLOB, tmp_path, lambda done: None))
    assert files == []


@pytest.mark.root("mounts a small file system")
def test_a_full_disk(server: Server, repository: Repository, tmp_path: Path) -> None:
    server.on(PATH, ranged(DATA))
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "farcall-test", small], check=True)
    try:
        with pytest.raises(errors.ResourceExhaustedError, match="no room"):
            get(repository, small / "downloads")
    finally:
        subprocess.run(["umount", small], check=True)
