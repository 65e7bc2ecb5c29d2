"""Rounds: in each, every peer measures in fresh processes, in an order drawn anew."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.samples import median

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT = Path(__file__).parents[1]
PEER_SECONDS = 900.0  # for one peer's part of a round; the first one builds images
END_SECONDS = 20.0  # for a peer that was told to end
# What an idle process holds is measured before others make it grow; `run hello` ends the server that others use.
_PLACES = {"memory": -1, "run hello": 1}
SERVER_IDLE_SECONDS = "60"  # a server that this program, killed, could not end, ends itself


class Peer(NamedTuple):
    """`bench.peers.{module}`, which needs `package`, and `program`."""

    module: str
    package: str | None
    program: str | None = None

    @property
    def lacks(self) -> str:
        """What of it is not installed; "" where nothing is."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return self.package
        return self.program if self.program is not None and shutil.which(self.program) is None else ""


class Bar(NamedTuple):
    """A promise of farcall's: its median is at most `limit` times that of the contender `of`; without one, at most
    `limit` in the unit of the row. Where more is better, at least."""

    limit: float
    of: str | None = None


@dataclass(frozen=True)
class Row:
    """One thing that is measured. `contenders` are in the order of the table; what the first achieves is judged."""

    name: str
    unit: str
    what: str
    measurement: str
    contenders: Mapping[str, Peer]
    bars: tuple[Bar, ...] = ()
    more_is_better: bool = False


@dataclass
class Figure:
    """One contender's values in one row, one for each round, each from `count` single ones; or why there are none."""

    count: int = 0
    values: list[float] = field(default_factory=list[float])
    missing: str = ""

    @property
    def median(self) -> float:
        return median(self.values)


class Measured:
    """What the rounds gave, by row and contender."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.figures = {row.name: {contender: Figure() for contender in row.contenders} for row in rows}
        self.isolation: dict[str, bool] = {}
        self.rounds = 0
        self.load = os.getloadavg()  # of others, before this began

    def add(self, line: Mapping[str, Any]) -> None:
        """Takes one result of a peer."""
        if line["row"] == "isolation":
            self.isolation[line["contender"]] = bool(line["value"])
            return
        figure = self.figures.get(line["row"], {}).get(line["contender"])
        if figure is not None:
            figure.values.append(line["value"])
            figure.count = line["samples"]

    def miss(self, peer: Peer, why: str, measurement: str | None = None, contender: str | None = None) -> None:
        """Notes why a peer has no figures: of one measurement, or of any; of one contender, or of all it stands for."""
        for row in self.rows:
            if measurement in (None, row.measurement):
                for name, of in row.contenders.items():
                    if of == peer and contender in (None, name):
                        self.figures[row.name][name].missing = why


def run_rounds(rows: Sequence[Row], peers: Sequence[Peer], rounds: int, say: Callable[[str], None]) -> Measured:
    """Measures the rows of these peers. Ends what it started, also when interrupted: what was measured until then is
    then what there is."""
    measured = Measured(rows)
    ready: list[Peer] = []
    for peer in dict.fromkeys(peer for row in rows for peer in row.contenders.values()):
        if peer not in peers:
            measured.miss(peer, "left out")
        elif peer.lacks:
            measured.miss(peer, f"{peer.lacks} is not installed")
        else:
            ready.append(peer)
    with tempfile.TemporaryDirectory(prefix="farcall-bench-", ignore_cleanup_errors=True) as scratch:
        try:
            for number in range(1, rounds + 1):
                for peer in random.sample(ready, len(ready)):
                    wanted = list(dict.fromkeys(row.measurement for row in rows if peer in row.contenders.values()))
                    if peer.module == "farcall" and number == 1:
                        wanted.append("isolation")
                    wanted.sort(key=lambda name: (_PLACES.get(name, 0), random.random()))
                    say(f"round {number} of {rounds}: {peer.module}")
                    with _environment(peer, Path(scratch)) as environment:
                        _measure(peer, wanted, environment, measured)
                measured.rounds = number
        except KeyboardInterrupt:
            say(f"interrupted in round {measured.rounds + 1} of {rounds}")
    return measured


def _measure(peer: Peer, wanted: list[str], environment: dict[str, str], measured: Measured) -> None:
    receive, send = os.pipe()
    with os.fdopen(receive, "rb", buffering=0) as results, tempfile.TemporaryFile() as output:
        # A session of its own: an interrupt from the terminal comes to this process, which ends the peer in order.
        process = subprocess.Popen(
            [sys.executable, "-m", f"bench.peers.{peer.module}", str(send), *wanted],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(send,),
            start_new_session=True,
        )
        os.close(send)
        try:
            ended = _take(results, peer, measured)
        except BaseException:
            _end(process, patience=0)
            raise
        _end(process, patience=END_SECONDS if ended else 0)
        if not ended or process.returncode:
            output.seek(0)
            last = output.read().decode(errors="replace").strip().rpartition("\n")[2]
            how = f"its process ended with {process.returncode}" if ended else f"not done after {PEER_SECONDS:.0f} s"
            measured.miss(peer, f"{how}: {last}")


def _take(results: Any, peer: Peer, measured: Measured) -> bool:
    """Takes results until the peer closes its pipe; False where that takes too long."""
    deadline = time.monotonic() + PEER_SECONDS
    text = b""
    with selectors.DefaultSelector() as selector:
        selector.register(results, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            new = results.read(65536)
            if not new:
                return True
            *lines, text = (text + new).split(b"\n")
            for line in map(json.loads, lines):
                if "error" in line:
                    measured.miss(peer, line["error"], line["measurement"], line.get("contender"))
                else:
                    measured.add(line)
    return False


def _end(process: subprocess.Popen[bytes], patience: float) -> None:
    """Ends a peer: it has `patience` to end by itself, is then told to, and in the end is killed with its session."""
    try:
        process.wait(patience)
        return
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _environment(peer: Peer, scratch: Path) -> Generator[dict[str, str]]:
    """What the peer's process gets. For farcall: directories of its own, so that the user's server is neither used nor
    disturbed; the server started there ends with the block."""
    environment = {**os.environ, "TMPDIR": str(scratch)}
    if peer.module != "farcall":
        yield environment
        return
    with _own_server(environment, scratch) as environment:
        yield environment


@contextmanager
def farcall_environment() -> Generator[None]:
    """The same for this process."""
    before = dict(os.environ)
    with (
        tempfile.TemporaryDirectory(prefix="farcall-bench-", ignore_cleanup_errors=True) as scratch,
        _own_server(before, Path(scratch)) as environment,
    ):
        os.environ.clear()
        os.environ.update(environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def _own_server(environment: Mapping[str, str], scratch: Path) -> Generator[dict[str, str]]:
    environment = dict(environment)
    for name in [name for name in environment if name.startswith("FARCALL_")]:
        del environment[name]
    state = Path(tempfile.mkdtemp(prefix="state-", dir=scratch))
    environment |= {
        "FARCALL_STATE_DIR": str(state),
        "FARCALL_IDLE_SECONDS": SERVER_IDLE_SECONDS,
        "XDG_DATA_HOME": str(scratch / "data"),
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "XDG_CONFIG_HOME": str(scratch / "config"),
    }
    try:
        yield environment
    finally:
        stop = [sys.executable, "-m", "farcall", "server", "stop", "--force"]
        subprocess.run(stop, env=environment, cwd=ROOT, capture_output=True, check=False, timeout=60)
        shutil.rmtree(state, ignore_errors=True)
