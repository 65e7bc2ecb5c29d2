"""The content store in this process, beside the programs that do something like it: cp, git.

What is written goes only when the whole benchmark is over: ext4 is slow to make files for minutes after many have been
removed, and the next round would pay for it.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers import Measurement, Result, run
from bench.samples import median, seconds, timed
from farcall.content import Store
from farcall.content.ingest import ingest_directory
from farcall.content.statcache import StatCache

NAME = "farcall"
LARGE_FILES, LARGE_BYTES = 4, 128_000_000
SMALL_FILES = 20_000
TREE_FILES = 50_000
PROJECT_FILES = 2_000
FILES_IN_FOLDER = 25


def large_files(scratch: Path) -> Iterator[Result]:
    source = scratch / "large"
    source.mkdir()
    for number in range(LARGE_FILES):
        (source / str(number)).write_bytes(os.urandom(LARGE_BYTES))
    total = LARGE_FILES * LARGE_BYTES / 1e6
    for contender, taken in _new(scratch, source):
        yield Result("ingest, large files", contender, total / taken, 1)


def small_files(scratch: Path) -> Iterator[Result]:
    source = scratch / "small"
    _make_files(source, SMALL_FILES)
    for contender, taken in _new(scratch, source):
        yield Result("ingest, small files", contender, SMALL_FILES / taken, 1)


def _new(scratch: Path, source: Path) -> Iterator[tuple[str, float]]:
    """Seconds for a directory that is new: to the store, and copied by cp."""
    os.sync()  # so that nobody pays for what making the source has left to be written
    store = Store(scratch / f"store of {source.name}")
    with store.lease("bench") as lease:
        yield NAME, seconds(partial(ingest_directory, lease, source))
    os.sync()
    yield "cp -r", seconds(partial(_run, "cp", "-r", source, scratch / f"copy of {source.name}"))


def unchanged_tree(scratch: Path) -> Iterator[Result]:
    source = scratch / "tree"
    _make_files(source, TREE_FILES)
    time.sleep(2.5)  # git, too, looks twice at what has changed in the last second or two
    store, cache = Store(scratch / "store of tree"), StatCache(scratch / "cache of tree")

    def ingest() -> None:
        with store.lease("bench") as lease:
            ingest_directory(lease, source, cache=cache)

    ingest()
    taken = timed(ingest, 5)
    yield Result("unchanged tree", NAME, median(taken), len(taken))
    _run("git", "init", "-q", source)
    _run("git", "-C", source, "add", ".")
    status = partial(_run, "git", "-C", source, "status", "--porcelain", "-uno")
    status()
    taken = timed(status, 5)
    yield Result("unchanged tree", "git status", median(taken), len(taken))


def one_file_changed(scratch: Path) -> Iterator[Result]:
    source = scratch / "project"
    files = _make_files(source, PROJECT_FILES)
    store, cache = Store(scratch / "store of project"), StatCache(scratch / "cache of project")
    unchanged: list[float] = []
    changed: list[float] = []
    with store.lease("bench") as lease:

        def ingest() -> None:
            ingest_directory(lease, source, cache=cache)

        for number in range(20):
            time.sleep(0.1)
            ingest()
            unchanged.append(seconds(ingest))
            files[number].write_text(f"x = {number}\n")
            changed.append(seconds(ingest))
    yield Result("one file changed", NAME, 1e3 * (median(changed) - median(unchanged)), len(changed))


def hashes() -> Iterator[Result]:
    kinds: dict[str, Callable[[bytes], Any]] = {
        "SHA-256": lambda data: hashlib.sha256(data).digest(),
        "BLAKE2b": lambda data: hashlib.blake2b(data, digest_size=32).digest(),
    }
    try:
        from blake3 import blake3

        kinds["BLAKE3"] = lambda data: blake3(data).digest()
    except ImportError:
        pass
    large, small = os.urandom(100_000_000), os.urandom(4096)
    for kind, hash_ in kinds.items():
        taken = timed(partial(hash_, large), 5)
        yield Result("hash, 100 MB", kind, 1e3 * median(taken), len(taken))
        taken = timed(partial(hash_, small), 10_000)
        yield Result("hash, 4 kB", kind, 1e6 * median(taken), len(taken))


def _make_files(root: Path, count: int) -> list[Path]:
    rng = random.Random(count)
    made: list[Path] = []
    for number in range(count):
        folder = root / f"p{number // FILES_IN_FOLDER // 100}" / f"d{number // FILES_IN_FOLDER}"
        if number % FILES_IN_FOLDER == 0:
            folder.mkdir(parents=True)
        made.append(folder / f"module_{number}.py")
        made[-1].write_bytes(rng.randbytes(rng.randrange(100, 8000)))
    return made


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def peer() -> Generator[Mapping[str, Measurement]]:
    scratch = Path(tempfile.mkdtemp(prefix="content-"))
    yield {
        "ingest, large files": partial(large_files, scratch),
        "ingest, small files": partial(small_files, scratch),
        "unchanged tree": partial(unchanged_tree, scratch),
        "one file changed": partial(one_file_changed, scratch),
        "hash": hashes,
    }


if __name__ == "__main__":
    run(peer)
