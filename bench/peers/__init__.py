"""The peers, each behind one small interface, each in processes of its own.

A peer's module is a program, `python -m bench.peers.NAME FD MEASUREMENT...`: it makes the measurements in the order
given, and writes each result as a line of JSON to the descriptor FD. Its standard output is read by nobody.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple, NoReturn


class Result(NamedTuple):
    """One figure: `value`, in the unit of the row, comes from this many `samples`."""

    row: str
    contender: str
    value: float
    samples: int


class Missing(NamedTuple):
    """Why a contender of this measurement has no figures."""

    contender: str
    error: str


Measurement = Callable[[], Iterator[Result | Missing]]
# A peer: entered, it is set up, and says what it can measure; left, nothing of it runs.
Peer = AbstractContextManager[Mapping[str, Measurement]]


def run(peer: Callable[[], Peer]) -> None:
    """The program of a peer's module."""
    signal.signal(signal.SIGTERM, _end)
    with os.fdopen(int(sys.argv[1]), "w", buffering=1) as out, peer() as measurements:
        for name in sys.argv[2:]:
            try:
                for found in measurements[name]():
                    told = found._asdict() if isinstance(found, Result) else {"measurement": name} | found._asdict()
                    print(json.dumps(told), file=out)
            except Exception as error:
                print(json.dumps({"measurement": name, "error": f"{type(error).__name__}: {error}"}), file=out)


def _end(number: int, frame: object) -> NoReturn:
    """As an interrupt from a terminal, so that a peer is left in order."""
    raise KeyboardInterrupt
