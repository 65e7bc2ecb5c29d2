"""Five workers that have nothing of an image, started at once: what an object store is asked for.

Everything is as users have it: one machine builds the image and shares it in a real S3 server, another one's server
finds it there, and five workers that have joined it over TLS, with the same object store, start it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.bucket import make_bucket
from bench.elsewhere import OBJECT_STORE_RATE, OBJECT_STORE_ROUND_TRIP
from bench.peers import Measurement, Result, run
from bench.slowline import slow_line
from farcall.builder.images import IMAGES
from farcall.content.store import Store
from tests.cluster.machines import share_runners, workers_of
from tests.conftest import Installation, short_directory
from tests.content.tiers.seaweedfs import KEYS, SeaweedFS

NAME = "farcall"
NODES = 5
_BUILD_SECONDS = 600
_PROGRAM = """
import os, time
import farcall

# More than half of what a worker has, so that each has one container; nothing is taken for it.
MEMORY = int(0.6 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20)
IMAGE = farcall.Image.debian_slim().uv_pip_install("pandas", "scikit-learn", "pyarrow")
app = farcall.App("together", image=IMAGE)


@app.function(memory=MEMORY, timeout=600, min_containers=NODES)
def imported(x):
    import pandas, pyarrow, sklearn.ensemble
    time.sleep(1)
    return sklearn.__version__


@app.local_entrypoint()
def main():
    begin = time.monotonic()
    assert len(set(imported.map(range(NODES)))) == 1
    print("took", time.monotonic() - begin - 1)
"""


def _settings(endpoint: str) -> dict[str, str]:
    return {"FARCALL_OBJECT_STORE": "s3://farcall/together", "FARCALL_OBJECT_STORE_ENDPOINT": endpoint} | KEYS


class Together:
    """The image in its object store, and machines that lack it."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._weed = SeaweedFS(scratch / "weed")

    def measure(self) -> Iterator[Result]:
        """One cold start of all five."""
        self._weed.start()
        try:
            builder = Installation.under(self._scratch / "builder", self._scratch / "builder")
            self._build(builder)
            log = self._scratch / "asked"
            log.unlink(missing_ok=True)
            port = int(self._weed.endpoint.rpartition(":")[2])
            with slow_line(port, OBJECT_STORE_ROUND_TRIP, OBJECT_STORE_RATE, log) as line:
                took = self._start(f"http://127.0.0.1:{line.port}", self._scratch / "builder")
                asked = Counter(one for one in log.read_text().split() if "/packs/" in one or "/pieces/" in one)
                received = line.received
            yield Result("object store, five cold nodes", NAME, asked.total() / len(asked), asked.total())
            yield Result("bytes of five cold nodes", NAME, received / 1e6, 1)
            yield Result("five cold imports", NAME, took, 1)
        finally:
            self._weed.kill()

    def _program(self, nodes: int) -> Path:
        """One container on each."""
        path = self._scratch / f"on_{nodes}.py"
        path.write_text(_PROGRAM.replace("NODES", str(nodes)))
        return path

    def _build(self, builder: Installation) -> None:
        """Done once: what is there is found, and nothing pushed again."""
        make_bucket(self._weed.endpoint)
        builder.environment |= _settings(self._weed.endpoint)
        try:
            builder.farcall("run", self._program(1), timeout=_BUILD_SECONDS)
            self._wait_for_bytecode(builder)
            builder.farcall("content", "push", timeout=_BUILD_SECONDS)
        finally:
            builder.farcall("server", "stop", "--force")

    def _wait_for_bytecode(self, builder: Installation) -> None:
        """It is compiled behind the first start. Else the five nodes would start without it, and each compile what it
        imports."""
        store = Store(Path(builder.environment["XDG_DATA_HOME"]) / "farcall" / "content" / "local")
        deadline = time.monotonic() + _BUILD_SECONDS
        while not all(record.data["compiled"] for record in store.records(IMAGES) if record.data["python"]):
            if time.monotonic() > deadline:
                raise RuntimeError("the image's bytecode was not compiled")
            time.sleep(0.2)

    def _start(self, endpoint: str, shared: Path) -> float:
        """Seconds."""
        with short_directory() as root:
            server = Installation.under(root / "server", root / "server" / "own")
            server.environment |= _settings(endpoint)
            share_runners(shared, Path(server.environment["XDG_DATA_HOME"]))
            try:
                server.farcall("server", "start", "--listen", "127.0.0.1:0", "--no-own-worker")
                log = server.root / "state" / "server.log"
                lines = {"has_lines": False, "settings": _settings(endpoint)}
                with workers_of(server, log, root, shared, NODES, **lines) as made:
                    ran = server.farcall("run", "--quiet", self._program(NODES), timeout=_BUILD_SECONDS)
                    for worker in made.workers:
                        content = Path(worker.place.environment["XDG_DATA_HOME"]) / "farcall" / "content" / "local"
                        assert any((content / "trees").iterdir()), f"{worker.name} has had nothing to do"
                    return float(ran.stdout.split()[-1])
            finally:
                server.farcall("server", "stop", "--force")


@contextmanager
def peer() -> Generator[Mapping[str, Measurement]]:
    if os.geteuid() != 0:
        raise RuntimeError("lazy images need root")
    scratch = Path(tempfile.gettempdir(), "together")
    scratch.mkdir(exist_ok=True)
    # What is built stays for the next round, and goes with the whole benchmark.
    yield {"together": Together(scratch).measure}


if __name__ == "__main__":
    run(peer)
