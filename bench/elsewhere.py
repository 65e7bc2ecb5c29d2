"""The rows of `python -m bench elsewhere`: what is measured, of whom, and what was promised (docs/specification.md)."""

from __future__ import annotations

from bench.measure import Bar, Peer, Row

ROUND_TRIP = 0.030  # seconds, of the line to the other machine
OBJECT_STORE_ROUND_TRIP = 0.020  # seconds, of the line to the object store, and to the registry
OBJECT_STORE_RATE = 200e6  # bytes a second

WORKER_LEASE = 10.0  # seconds
WORKER_INPUTS = 0.02  # seconds, of the inputs that were handed to the one that is killed

SSH = Peer("ssh", None)
WORKERS = Peer("workers", None)
COLD = Peer("cold", None)
TOGETHER = Peer("together", None)
PEERS = (SSH, WORKERS, COLD, TOGETHER)

_WITH_PROFILE, _PULLED = "farcall, with a start profile", "skopeo, umoci and runc"
_BUILT = "built there"
_COPIED = "a copy of what was built"
_BARE = "bare sockets"
_LINE = f"over ssh with {1e3 * ROUND_TRIP:.0f} ms of round trip"

ROWS = (
    Row(
        "first line, cold",
        "ms",
        f"`farcall run` {_LINE}: from the command to the function's first line; farcall is installed there, and "
        "nothing of it runs there or here",
        measurement="starts",
        contenders={"farcall": SSH},
        bars=(Bar(3000),),
    ),
    Row(
        "first line, after an edit",
        "ms",
        "the same, again, after one line of the program has changed",
        measurement="starts",
        contenders={"farcall": SSH},
        bars=(Bar(500 + 3 * 1e3 * ROUND_TRIP),),
    ),
    Row(
        "warm call, ssh",
        "ms",
        f"f.remote(1) {_LINE}",
        measurement="warm call",
        contenders={"farcall": SSH},
        bars=(Bar(1.3 * 1e3 * ROUND_TRIP + 2),),
    ),
    Row(
        "warm call, worker",
        "us",
        "f.remote(1) on a worker that has joined over TLS, on loopback; beside it four processes that only pass bytes "
        "on, over the same kinds of sockets",
        measurement="far call",
        contenders={"farcall": WORKERS, _BARE: WORKERS},
        bars=(Bar(350),),
    ),
    Row(
        "no-op map, workers",
        "/s",
        "over two such workers, a container on each",
        measurement="far map",
        more_is_better=True,
        contenders={"farcall": WORKERS},
        bars=(Bar(20_000),),
    ),
    Row(
        "worker killed in a map",
        "s",
        "10,000 inputs of 1 ms over the two, of which one is killed with its container in the middle: how much longer "
        "it takes than undisturbed",
        measurement="killed worker",
        contenders={"farcall": WORKERS},
        bars=(Bar(WORKER_LEASE + WORKER_INPUTS),),
    ),
    Row(
        "100 MB there",
        "ms",
        f"100 MB of bytes as an argument {_LINE}; scp copies a file of that size to memory",
        measurement="100 MB",
        contenders={"farcall": SSH, "scp": SSH},
        bars=(Bar(1 / 0.8, of="scp"),),
    ),
    Row(
        "cold import torch",
        "s",
        "an image that is only in an object store (S3, 20 ms, 200 MB/s), on a machine that has nothing of it: to the "
        "end of `import torch`; the others pull it from a registry over such a line, unpack it and start it",
        measurement="cold node",
        contenders={"farcall": COLD, _WITH_PROFILE: COLD, _PULLED: COLD},
        bars=(Bar(1 / 3, of=_PULLED),),
    ),
    Row(
        "cold import torch, profile",
        "s",
        "the same, after another machine has started from that image",
        measurement="cold node",
        contenders={_WITH_PROFILE: COLD, _PULLED: COLD},
        bars=(Bar(1 / 5, of=_PULLED),),
    ),
    Row(
        "bytes of a cold import torch",
        "MB",
        "what is fetched for it",
        measurement="cold node",
        contenders={"farcall": COLD, _WITH_PROFILE: COLD, _PULLED: COLD},
    ),
    Row(
        "object store, five cold nodes",
        "times",
        "five workers that have nothing of an image with pandas, scikit-learn and pyarrow, which is in such an object "
        "store, start it at once: how often that is asked for a pack or piece, on average",
        measurement="together",
        contenders={"farcall": TOGETHER},
        bars=(Bar(1.3),),
    ),
    Row(
        "bytes of five cold nodes",
        "MB",
        "what the object store sends for it",
        measurement="together",
        contenders={"farcall": TOGETHER},
    ),
    Row(
        "five cold imports",
        "s",
        "from the call to the end of the last import, all five on this one machine",
        measurement="together",
        contenders={"farcall": TOGETHER},
    ),
    *(
        Row(
            f"{name} once fetched{', cold' if is_cold else ''}",
            "s",
            f"{title}, of an image that came from the object store and is whole, beside one that was built on this "
            "machine and a copy of that; "
            f"{'nothing of it in the page cache' if is_cold else 'all of it in the page cache'}",
            measurement="once fetched",
            contenders={"farcall": COLD, _BUILT: COLD, _COPIED: COLD},
            bars=(Bar(1.05, of=_BUILT),),
        )
        for name, title in (
            ("import torch", "from asking for a container to the end of `import torch` in it"),
            (
                "reading torch",
                "reading all files of torch in containers, 4 MiB at a time, each file from one after the other",
            ),
        )
        for is_cold in (False, True)
    ),
)
