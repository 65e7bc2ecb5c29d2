"""farcall with its server on another machine: a real sshd, a home of its own, and a line that takes its time."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import farcall
from bench.elsewhere import ROUND_TRIP
from bench.peers import Measurement, Result, run
from bench.peers.farcall import command
from bench.peers.measurements import LARGE
from bench.samples import median, timed
from tests.link.box import Box

NAME = "farcall"
STARTS = 3
CALLS = 100
COPIES = 3

_PROGRAM = """
import sys, time
import farcall

app = farcall.App("elsewhere", image=farcall.Image.host())


@app.function()
def hello():
    print("first line, edit {edit}")


@app.local_entrypoint()
def main():
    hello.remote()
"""

app = farcall.App("bench-elsewhere", image=farcall.Image.host())


@app.function(serialized=True)
def echo(x: int) -> int:
    return x


@app.function(serialized=True)
def length(data: bytes) -> int:
    return len(data)


class Elsewhere:
    """The measurements."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self._program = box.root / "program.py"
        self._edits = 0

    def starts(self) -> Iterator[Result]:
        """A first run and one after an edit, each from the command line to the function's first line."""
        cold: list[float] = []
        edited: list[float] = []
        for _ in range(STARTS):
            self.stop()
            cold.append(self._first_line())
            edited.append(self._first_line())
        yield Result("first line, cold", NAME, 1e3 * median(cold), STARTS)
        yield Result("first line, after an edit", NAME, 1e3 * median(edited), STARTS)

    def warm_call(self) -> Iterator[Result]:
        """One call after the other."""
        with app.run():
            timed(lambda: echo.remote(1), 10)
            yield Result("warm call, ssh", NAME, 1e3 * median(timed(lambda: echo.remote(1), CALLS)), CALLS)

    def large(self) -> Iterator[Result]:
        """100 MB to the other machine, by a call and by scp, in turn."""
        data = os.urandom(LARGE)
        file = self.box.root / "large"
        file.write_bytes(data)
        ours: list[float] = []
        theirs: list[float] = []
        copy = ["scp", *shlex.split(self.box.ssh)[1:], "-q", str(file), f"box:/dev/shm/{file.parent.name}"]
        with app.run():
            length.remote(data[:1000])
            for _ in range(COPIES):
                [took] = timed(lambda: length.remote(data), 1)
                ours.append(took)
                [took] = timed(lambda: subprocess.run(copy, check=True), 1)
                theirs.append(took)
        os.unlink(f"/dev/shm/{file.parent.name}")
        yield Result("100 MB there", NAME, 1e3 * median(ours), COPIES)
        yield Result("100 MB there", "scp", 1e3 * median(theirs), COPIES)

    def stop(self) -> None:
        """Ends the server there, and the link."""
        subprocess.run(command("server", "stop", "--force"), check=True, capture_output=True)

    def _first_line(self) -> float:
        self._edits += 1
        self._program.write_text(_PROGRAM.replace("{edit}", str(self._edits)))
        begin = time.perf_counter()
        words = command("run", str(self._program))
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            assert running.stdout is not None
            line = running.stdout.readline()
            took = time.perf_counter() - begin
            _, said = running.communicate()
        if line != f"first line, edit {self._edits}\n".encode():
            raise AssertionError(f"{line!r} was printed: {said.decode(errors='replace')}")
        return took


@contextmanager
def peer() -> Generator[Mapping[str, Measurement]]:
    """A machine, reached over a slow line, on which farcall is installed before anything is measured."""
    with tempfile.TemporaryDirectory(prefix="fb-", dir="/tmp") as folder:
        delay = f"{sys.executable} -m bench.delay {ROUND_TRIP / 2}"
        box = Box(Path(folder), line=f"cd {Path(__file__).parents[2]} && exec {delay}")
        os.environ |= {"FARCALL_SERVER": box.url, "FARCALL_SSH": box.ssh}
        measurements = Elsewhere(box)
        with app.run():
            echo.remote(1)
        try:
            yield {
                "starts": measurements.starts,
                "warm call": measurements.warm_call,
                "100 MB": measurements.large,
            }
        finally:
            measurements.stop()


if __name__ == "__main__":
    run(peer)
