"""The rows of `python -m bench calls`: what is measured, of whom, and what was promised (docs/specification.md)."""

from __future__ import annotations

from bench.measure import Bar, Peer, Row

FARCALL = Peer("farcall", "farcall")
POOL = Peer("pool", None)
RAY = Peer("ray", "ray")
PEERS = (FARCALL, POOL, RAY)

_POOL_NAME = "ProcessPoolExecutor"
_AT_MOST_THIRD = 1 / 3

ROWS = (
    Row(
        "warm call",
        "us",
        "median of calls one after the other",
        measurement="warm call",
        contenders={
            "farcall": FARCALL,
            "farcall, .aio": FARCALL,
            _POOL_NAME: POOL,
            "Ray task": RAY,
            "Ray actor": RAY,
        },
        bars=(Bar(250), Bar(1, _POOL_NAME), Bar(_AT_MOST_THIRD, "Ray actor")),
    ),
    Row(
        "warm call, p99",
        "us",
        "what one call in a hundred exceeds",
        measurement="warm call",
        contenders={
            "farcall": FARCALL,
            "farcall, .aio": FARCALL,
            _POOL_NAME: POOL,
            "Ray task": RAY,
            "Ray actor": RAY,
        },
    ),
    Row(
        "no-op map",
        "/s",
        "over two containers, processes, actors",
        measurement="no-op map",
        more_is_better=True,
        contenders={
            "farcall": FARCALL,
            f"{_POOL_NAME}, chunksize 1": POOL,
            f"{_POOL_NAME}, chunksize 64": POOL,
            "Ray task": RAY,
            "Ray actor": RAY,
        },
        bars=(Bar(30_000), Bar(10, "Ray task")),
    ),
    Row(
        "new container, fork",
        "ms",
        "to the first line of the function; fork of a warm process",
        measurement="new container, fork",
        contenders={"farcall": FARCALL, f"{_POOL_NAME}, fork": POOL},
        bars=(Bar(25),),
    ),
    Row(
        "new container, exec",
        "ms",
        "to the first line of the function; a new interpreter",
        measurement="new container, exec",
        contenders={"farcall": FARCALL, f"{_POOL_NAME}, spawn": POOL, "Ray actor": RAY},
        bars=(Bar(120),),
    ),
    Row(
        "burst of 100",
        "s",
        "100 new containers of cpu=0.01 have answered",
        measurement="burst",
        contenders={"farcall": FARCALL},
        bars=(Bar(4),),
    ),
    Row(
        "100 MB bytes",
        "ms",
        "there and back",
        measurement="100 MB bytes",
        contenders={"farcall": FARCALL, _POOL_NAME: POOL, "Ray task": RAY},
        bars=(Bar(160), Bar(_AT_MOST_THIRD, "Ray task")),
    ),
    Row(
        "100 MB bytes, first",
        "ms",
        "the first time",
        measurement="100 MB bytes",
        contenders={"farcall": FARCALL, _POOL_NAME: POOL, "Ray task": RAY},
    ),
    Row(
        "100 MB array",
        "ms",
        "numpy, there and back",
        measurement="100 MB array",
        contenders={"farcall": FARCALL, _POOL_NAME: POOL, "Ray task": RAY},
        bars=(Bar(130), Bar(_AT_MOST_THIRD, "Ray task")),
    ),
    Row(
        "100 MB array, first",
        "ms",
        "the first time",
        measurement="100 MB array",
        contenders={"farcall": FARCALL, _POOL_NAME: POOL, "Ray task": RAY},
    ),
    Row(
        "import farcall",
        "ms",
        "more than bare Python",
        measurement="import",
        contenders={"farcall": FARCALL, "farcall, App used": FARCALL, "Ray (import ray)": RAY},
        bars=(Bar(20),),
    ),
    Row(
        "farcall --help",
        "ms",
        "more than bare Python",
        measurement="help",
        contenders={"farcall": FARCALL},
        bars=(Bar(60),),
    ),
    Row(
        "run hello, warm",
        "ms",
        "farcall run hello.py, server running",
        measurement="run hello",
        contenders={"farcall": FARCALL},
        bars=(Bar(300),),
    ),
    Row(
        "run hello, cold",
        "ms",
        "farcall run hello.py, no server",
        measurement="run hello",
        contenders={"farcall": FARCALL},
        bars=(Bar(1000),),
    ),
    Row(
        "idle container",
        "MB",
        "private memory, no user imports; n processes",
        measurement="memory",
        contenders={"farcall": FARCALL, "farcall, exec": FARCALL, _POOL_NAME: POOL, "Ray actor": RAY},
        bars=(Bar(18),),
    ),
    Row(
        "server memory, private",
        "MB",
        "n processes",
        measurement="memory",
        contenders={"farcall server": FARCALL, "farcall launcher, templates": FARCALL, "Ray's services": RAY},
    ),
    Row(
        "server memory, resident",
        "MB",
        "n processes",
        measurement="memory",
        contenders={"farcall server": FARCALL, "farcall launcher, templates": FARCALL, "Ray's services": RAY},
    ),
)
