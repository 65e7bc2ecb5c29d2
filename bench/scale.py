"""The rows of `python -m bench scale`: what is measured, of whom, and what was promised (docs/specification.md)."""

from __future__ import annotations

from bench.calls import FARCALL
from bench.measure import Bar, Peer, Row

DECIDING = Peer("deciding", "farcall")
CELERY = Peer("celery", "celery", program="redis-server")
PEERS = (FARCALL, DECIDING, CELERY)

_SPAWNERS = {"farcall": FARCALL, "Celery, fsync every second": CELERY, "Celery, fsync always": CELERY}

ROWS = (
    Row(
        "500 inputs of 0.2 s",
        "s",
        "map of time.sleep(0.2) at cpu=0.01, from no container to 50: perfect packing takes 2 s",
        measurement="from zero",
        contenders={"farcall": FARCALL},
        bars=(Bar(3),),
    ),
    Row(
        "spawn in bulk",
        "/s",
        "acknowledged, while another process spawns single ones; fsynced, but with Celery's every second",
        measurement="spawning",
        more_is_better=True,
        contenders=_SPAWNERS,
        bars=(Bar(10_000),),
    ),
    Row(
        "single spawn",
        "ms",
        "until acknowledged, one after the other, median",
        measurement="spawning",
        contenders=_SPAWNERS,
    ),
    Row(
        "single spawn, p99",
        "ms",
        "what one in a hundred exceeds",
        measurement="spawning",
        contenders=_SPAWNERS,
        bars=(Bar(5),),
    ),
    Row(
        "single spawn beside bulk",
        "ms",
        "the same while another process spawns in bulk as fast as it can, median",
        measurement="spawning",
        contenders=_SPAWNERS,
    ),
    Row(
        "single spawn beside bulk, p99",
        "ms",
        "what one in a hundred exceeds",
        measurement="spawning",
        contenders=_SPAWNERS,
        bars=(Bar(5),),
    ),
    Row(
        "spawned no-ops",
        "/s",
        "over two containers or processes, from the first one spawned to the last result there",
        measurement="spawned no-ops",
        more_is_better=True,
        contenders=_SPAWNERS,
    ),
    Row(
        "100,000 pending, memory",
        "MB",
        "the most that was resident, from the first one spawned on; of farcall over a restart, too",
        measurement="pending",
        contenders={"farcall server": FARCALL, "Celery's Redis": CELERY},
        bars=(Bar(300),),
    ),
    Row(
        "restart with 100,000 pending",
        "s",
        "since the server was killed: another one has answered a call; a pending input is done",
        measurement="pending",
        contenders={"farcall, .remote answered": FARCALL, "farcall, pending ones go on": FARCALL},
        bars=(Bar(2),),
    ),
    Row(
        "placements",
        "/s",
        "the scheduler alone: 1,000 workers, 200 of them with GPUs of five types, filled and emptied",
        measurement="placements",
        more_is_better=True,
        contenders={"farcall": DECIDING},
        bars=(Bar(10_000),),
    ),
    Row(
        "10,000 functions",
        "ms",
        "the autoscaler alone: how many containers each is to have, once",
        measurement="autoscaler",
        contenders={"farcall": DECIDING},
        bars=(Bar(50),),
    ),
    Row(
        "idle server, processor",
        "%",
        "of a core: a server, with its launcher, that has apps of 100 functions up, which were all called before",
        measurement="idle",
        contenders={"farcall": FARCALL},
        bars=(Bar(1),),
    ),
    Row(
        "idle server, memory",
        "MB",
        "the same server: resident",
        measurement="idle",
        contenders={"farcall server": FARCALL, "farcall launcher, templates": FARCALL},
        bars=(Bar(120),),
    ),
)
