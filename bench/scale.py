"""The rows of `python -m bench scale`: what is measured, of whom, and what was promised (docs/specification.md)."""

from __future__ import annotations

from bench.calls import FARCALL
from bench.measure import Bar, Peer, Row

DECIDING = Peer("deciding", "farcall")
PEERS = (FARCALL, DECIDING)

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
