"""The rows of `python -m bench elsewhere`: what is measured, of whom, and what was promised (docs/specification.md)."""

from __future__ import annotations

from bench.measure import Bar, Peer, Row

ROUND_TRIP = 0.030  # seconds, of the line to the other machine

SSH = Peer("ssh", None)
PEERS = (SSH,)

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
        "100 MB there",
        "ms",
        f"100 MB of bytes as an argument {_LINE}; scp copies a file of that size to memory",
        measurement="100 MB",
        contenders={"farcall": SSH, "scp": SSH},
        bars=(Bar(1 / 0.8, of="scp"),),
    ),
)
