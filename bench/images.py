"""The rows of `python -m bench images`: what is measured, of whom, and what was promised (docs/specification.md)."""

from __future__ import annotations

from bench.measure import Bar, Peer, Row

CONTENT = Peer("content", "farcall")
BUILDS = Peer("builds", "farcall")
MOUNTS = Peer("mounts", "farcall")
PEERS = (CONTENT, BUILDS, MOUNTS)

ROWS = (
    Row(
        "ingest, large files",
        "MB/s",
        "4 files of 128 MB, new to the store: read, hashed and written",
        measurement="ingest, large files",
        more_is_better=True,
        contenders={"farcall": CONTENT, "cp -r": CONTENT},
        bars=(Bar(500),),
    ),
    Row(
        "ingest, small files",
        "/s",
        "20,000 files of 4 kB on average, new to the store",
        measurement="ingest, small files",
        more_is_better=True,
        contenders={"farcall": CONTENT, "cp -r": CONTENT},
        bars=(Bar(15_000),),
    ),
    Row(
        "unchanged tree",
        "s",
        "50,000 files in 2,000 folders that were taken in before",
        measurement="unchanged tree",
        contenders={"farcall": CONTENT, "git status": CONTENT},
        bars=(Bar(0.5),),
    ),
    Row(
        "one file changed",
        "ms",
        "among 2,000 files: more than when none has",
        measurement="one file changed",
        contenders={"farcall": CONTENT},
        bars=(Bar(50),),
    ),
    Row(
        "hash, 100 MB",
        "ms",
        "one thread",
        measurement="hash",
        contenders={"SHA-256": CONTENT, "BLAKE2b": CONTENT, "BLAKE3": CONTENT},
    ),
    Row(
        "hash, 4 kB",
        "us",
        "one thread",
        measurement="hash",
        contenders={"SHA-256": CONTENT, "BLAKE2b": CONTENT, "BLAKE3": CONTENT},
    ),
    Row(
        "build numpy and pandas",
        "s",
        "on Debian that is there, packages downloaded before",
        measurement="packages",
        contenders={"farcall": BUILDS, "uv pip install": BUILDS},
    ),
    Row(
        "build beyond 1.2 times uv",
        "s",
        "the same: what it takes beyond 1.2 times uv's time into a new environment",
        measurement="packages",
        contenders={"farcall": BUILDS},
        bars=(Bar(2),),
    ),
    Row(
        "second image with torch",
        "%",
        "new bytes of a second image with torch, of those that the first one brought; bytecode included",
        measurement="shared bytes",
        contenders={"farcall": BUILDS},
        bars=(Bar(3),),
    ),
    Row(
        "run after an edit",
        "ms",
        "`farcall run` of a package of 2,000 modules",
        measurement="edits",
        contenders={"edited": BUILDS, "unchanged": BUILDS},
    ),
    Row(
        "edit",
        "ms",
        "what a changed line adds to that",
        measurement="edits",
        contenders={"farcall": BUILDS},
        bars=(Bar(50),),
    ),
    Row(
        "mount of 100,000 files",
        "ms",
        "an image of Debian, torch and these, with the overlay above it",
        measurement="mount",
        contenders={"EROFS": MOUNTS, "hard links": MOUNTS, "plain directory": MOUNTS},
        bars=(Bar(2),),
    ),
    Row(
        "container on 100,000 files",
        "ms",
        "the same image: from the request to the first line of its Python",
        measurement="starts",
        contenders={"EROFS": MOUNTS, "plain directory": MOUNTS, "hard links": MOUNTS},
        bars=(Bar(1.1, "plain directory"),),
    ),
    Row(
        "container on hard links",
        "ms",
        "the same, where EROFS cannot be mounted",
        measurement="starts",
        contenders={"hard links": MOUNTS, "plain directory": MOUNTS},
        bars=(Bar(2, "plain directory"),),
    ),
    *(
        Row(
            f"import {module}, {cache}",
            "ms",
            f"in a container of the image, beside a /usr on the disk; page cache {cache}",
            measurement=f"import {module}, {cache}",
            contenders={"EROFS": MOUNTS, "plain directory": MOUNTS},
            bars=(Bar(1.05, "plain directory"),),
        )
        for module in ("numpy", "torch")
        for cache in ("warm", "cold")
    ),
    Row(
        "torch read in another image",
        "%",
        "of its library's pages that are in memory for a second image (mincore), after it was read in the first",
        measurement="shared memory",
        contenders={"EROFS": MOUNTS},
        bars=(Bar(100),),
        more_is_better=True,
    ),
    Row(
        "torch in memory, two images",
        "copies",
        "what the page cache has grown by when its library was read in two images",
        measurement="shared memory",
        contenders={"EROFS": MOUNTS},
        bars=(Bar(1.05),),
    ),
)
