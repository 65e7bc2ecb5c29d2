"""A machine that has nothing of an image: that is in an object store at the other end of a slow line, or a registry.

To the end of `import torch`: by farcall, which starts at once and fetches what is opened, without a start profile and
with one; and by skopeo, umoci and runc, which fetch, unpack and start one after the other.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import random
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.bucket import NAME as BUCKET
from bench.bucket import make_bucket, open_bucket
from bench.elsewhere import OBJECT_STORE_RATE, OBJECT_STORE_ROUND_TRIP
from bench.peers import Measurement, Missing, Result, run
from bench.peers.builds import TORCH, Workshop
from bench.samples import median
from bench.slowline import SlowLine, slow_line
from farcall.builder.images import Image
from farcall.builder.oci.export import export_archive
from farcall.content.store import Store
from farcall.content.tiers import Fetcher
from farcall.content.tiers.places import open_place
from farcall.content.tiers.pusher import Pusher
from farcall.mounts.lazy.sources import Source, set_sources
from farcall.spec.container import Bind, ContainerSpec, Limits, TreeMount
from farcall.spec.image import Pip
from farcall.worker.filesystems import Filesystems
from farcall.worker.worker import Worker
from tests.content.tiers.seaweedfs import KEYS, SeaweedFS

LAZY, PROFILE, PULL, BUILT = "farcall", "farcall, with a start profile", "skopeo, umoci and runc", "built there"
COPIED = "a copy of what was built"  # the same bytes at another place of the disk: what that alone makes of it
STARTS = 3
FETCHED_STARTS = 8
FETCHED_READS = 7  # of all files
_PLACE = f"s3://{BUCKET}/content"
_PROGRAM = ("-c", "import time; begin = time.monotonic(); import torch; print('imported', begin, time.monotonic())")
# Reads the file of torch whose number it is asked for, and tells how long that took.
_READ = """
import pathlib, sys, time
[torch] = [folder / "torch" for folder in map(pathlib.Path, sys.path) if (folder / "torch").is_dir()]
files = sorted(str(path) for path in torch.rglob("*") if path.is_file() and not path.is_symlink())
with open("/reading/asked") as asked, open("/reading/told", "w") as told:
    print(len(files), file=told, flush=True)
    for line in asked:
        begin = time.perf_counter()
        with open(files[int(line)], "rb", buffering=0) as file:
            while file.read(4 << 20):
                pass
        print(time.perf_counter() - begin, file=told, flush=True)
"""
_PROFILE_SECONDS = 4.0  # after which nothing more is added to a profile, and it has been sent


class Span(NamedTuple):
    """A part of a start, of so many seconds."""

    name: str
    seconds: float


class Reader:
    """A container that reads files of torch when it is asked to."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.bind = Bind(str(folder), "/reading", read_only=False)
        self._folder = folder
        for name in ("asked", "told"):
            os.mkfifo(folder / name)

    @contextmanager
    def open(self) -> Generator[int]:
        """Waits for it; how many files there are. At the end, so does it."""
        with open(self._folder / "asked", "w") as self._asked, open(self._folder / "told") as self._told:
            yield int(self._told.readline())

    def read(self, number: int) -> float:
        """Has a file read; how long that took."""
        print(number, file=self._asked, flush=True)
        return float(self._told.readline())


def _read_beside_each_other(readers: Mapping[str, Reader]) -> list[Result]:
    """All files, each read from one store after the other: what else the disk does in that minute it does to all. Each
    is read twice, from the disk and from memory: where in memory a file came to lie makes a difference to the second,
    so each pass begins anew. The sum of the median times of each file."""
    order = random.Random(5)
    with ExitStack() as stack:
        [count] = {stack.enter_context(reader.open()) for reader in readers.values()}
        titles = ("reading torch once fetched, cold", "reading torch once fetched")
        took: dict[tuple[str, str], list[list[float]]] = {
            (title, name): [[] for _ in range(count)] for title in titles for name in readers
        }
        for _ in range(FETCHED_READS):
            _drop_caches()
            for number in order.sample(range(count), count):
                for name in order.sample(list(readers), len(readers)):
                    for title in titles:
                        took[title, name][number].append(readers[name].read(number))
    return [Result(*key, sum(map(median, files)), FETCHED_READS * count) for key, files in took.items()]


class Cold:
    """The image, where it can be fetched from, and machines that lack it."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._weed = SeaweedFS(scratch / "weed")
        self._nodes = 0
        self._python = ""
        self._starts: dict[str, list[list[Span]]] = {}
        self.received: dict[str, list[float]] = {}
        """Bytes that were fetched for each start."""

    def measure(self) -> Iterator[Result | Missing]:
        """The median of each, and what was fetched."""
        starts = self.starts(STARTS)
        for contender, spans in starts.items():
            took = median([sum(span.seconds for span in start) for start in spans])
            for row in ("cold import torch", "cold import torch, profile"):
                yield Result(row, contender, took, len(spans))
            received = median(self.received[contender])
            yield Result("bytes of a cold import torch", contender, received / 1e6, len(spans))
        if lacking := _lacking_to_pull():
            yield Missing(PULL, f"not installed: {', '.join(lacking)}")

    def once_fetched(self) -> Iterator[Result]:
        """The same image, fetched and built here: starts and reads, from memory and from the disk."""
        with self._pushed() as (workshop, image), tempfile.TemporaryDirectory(dir=self._scratch) as name:
            folder = Path(name)
            store = Store(folder / "fetched")
            fetcher = Fetcher(store, [open_place(_PLACE, self._weed.endpoint)])
            with store.lease("bench") as lease:
                fetcher.fetch_tree(lease, image.root)
                store.put_record("bench", "image", trees=[image.root])
            fetcher.close()
            built = workshop.store
            subprocess.run(["cp", "-a", "--reflink=never", built.root, folder / "copied"], check=True)
            os.sync()
            stores = {LAZY: store, BUILT: built, COPIED: Store(folder / "copied")}
            yield from workshop.run(self._beside_each_other(folder, stores, image.root))

    async def _beside_each_other(self, folder: Path, stores: Mapping[str, Store], tree: str) -> list[Result]:
        results: list[Result] = []
        workers = {
            name: Worker(folder / f"launcher-{number}", "bench", lambda *text: None, Filesystems(store))
            for number, (name, store) in enumerate(stores.items())
        }
        leases = {name: store.lease("bench") for name, store in stores.items()}
        try:
            roots: dict[str, TreeMount] = {}
            for name, worker in workers.items():
                await worker.measure()
                roots[name] = await worker.prepare_tree(leases[name], tree)
                assert not roots[name].is_lazy
            for is_cold in (False, True):
                title = "import torch once fetched" + (", cold" if is_cold else "")
                took: dict[str, list[float]] = {name: [] for name in stores}
                for number in range(FETCHED_STARTS + 1):
                    for name in list(stores)[:: 1 if number % 2 else -1]:
                        if is_cold:
                            _drop_caches()
                        said: list[str] = []
                        asked = time.monotonic()
                        await workers[name].run(self._container(roots[name], _PROGRAM), said.append)
                        took[name].append(sum(span.seconds for span in _imported("".join(said), asked)))
                # The first one fills the page cache.
                results += [Result(title, name, median(seconds[1:]), FETCHED_STARTS) for name, seconds in took.items()]
            readers = {name: Reader(folder / f"reading-{number}") for number, name in enumerate(stores)}
            running = [
                workers[name].run(self._container(roots[name], ("-c", _READ), reader.bind), lambda text: None)
                for name, reader in readers.items()
            ]
            *_, found = await asyncio.gather(*running, asyncio.to_thread(_read_beside_each_other, readers))
            results += found
        finally:
            for worker in workers.values():
                await worker.close()
            for lease in leases.values():
                lease.close()
        return results

    def _container(self, root: TreeMount, program: tuple[str, ...], *binds: Bind) -> ContainerSpec:
        command = (self._python, *program)
        return ContainerSpec("ta-cold", None, Limits(), binds, root=root, command=command, cwd="/root")

    @contextmanager
    def _pushed(self) -> Generator[tuple[Workshop, Image]]:
        """The image, built here and in the object store."""
        workshop = Workshop(self._scratch)
        self._weed.start()
        os.environ |= KEYS  # launchers that are started from now on have them
        try:
            image = workshop.build(Pip("uv", (TORCH, "numpy")))
            workshop.settle()
            image = workshop.builder.images.get(image.image_id)  # with its bytecode
            assert image.python is not None
            self._python = image.python.executable
            self._push(workshop.store, image.root)
            yield workshop, image
        finally:
            workshop.close()
            self._weed.kill()

    def starts(self, count: int) -> Mapping[str, list[list[Span]]]:
        """All three in turn, `count` times; what each start was made of."""
        with self._pushed() as (workshop, image):
            tree = image.root
            can_pull = not _lacking_to_pull()
            layout = self._export(workshop.store, image) if can_pull else self._scratch  # which nobody asks for
            port = int(self._weed.endpoint.rpartition(":")[2])
            with (
                slow_line(port, OBJECT_STORE_ROUND_TRIP, OBJECT_STORE_RATE) as line,
                _registry(layout) as registry,
                slow_line(registry, OBJECT_STORE_ROUND_TRIP, OBJECT_STORE_RATE) as pulling,
            ):
                for _ in range(count):
                    self._forget_profile(tree)
                    self._note(LAZY, line, partial(self._start, line, tree))
                    self._note(PROFILE, line, partial(self._start, line, tree))
                    if can_pull:
                        self._note(PULL, pulling, partial(self._pull, pulling))
        return self._starts

    def _note(self, contender: str, line: SlowLine, take: partial[list[Span]]) -> None:
        before = line.received
        self._starts.setdefault(contender, []).append(take())
        self.received.setdefault(contender, []).append(line.received - before)

    def _push(self, store: Store, tree: str) -> None:
        make_bucket(self._weed.endpoint)
        pusher = Pusher(store, open_place(_PLACE, self._weed.endpoint))
        try:
            pusher.push_tree(tree)
        finally:
            pusher.close()

    def _forget_profile(self, tree: str) -> None:
        import obstore

        obstore.delete(open_bucket(self._weed.endpoint), f"content/profiles/{tree}")

    def _start(self, line: SlowLine, tree: str) -> list[Span]:
        """From knowing the tree's id to the end of the import, on a machine that has nothing."""
        self._nodes += 1
        node = self._scratch / f"node-{self._nodes}"
        endpoint = f"http://127.0.0.1:{line.port}"
        store = Store(node / "content")
        set_sources(store, [Source(_PLACE, endpoint)])
        _drop_caches()

        async def start() -> list[Span]:
            worker = Worker(node / "launcher", "bench", lambda *text: None, Filesystems(store))
            try:
                await worker.measure()  # the launcher is there
                begin = time.monotonic()
                with store.lease("bench") as lease:
                    fetcher = Fetcher(store, [open_place(_PLACE, endpoint)])
                    lease.add_tree(await asyncio.to_thread(fetcher.tree, tree), partial=True)
                    root = await worker.prepare_tree(lease, tree)
                    mounted = time.monotonic()
                    said: list[str] = []
                    spec = ContainerSpec(
                        "ta-cold", None, Limits(), root=root, command=(self._python, *_PROGRAM), cwd="/root"
                    )
                    await worker.run(spec, said.append)
                    spans = [Span("list of names", mounted - begin), *_imported("".join(said), mounted)]
                    await asyncio.to_thread(fetcher.close)
                    await asyncio.to_thread(_wait_for_profile, store, tree)
                return spans
            finally:
                await worker.close()

        spans = asyncio.run(start())
        shutil.rmtree(node)
        return spans

    def _export(self, store: Store, image: Image) -> Path:
        """As an OCI layout, for a registry."""
        archive, layout = self._scratch / "image.tar", self._scratch / "layout"
        if not layout.exists():
            export_archive(store, image.root, image.config, archive, name="torch:1")
            source = f"oci-archive:{archive}"
            # Compressed, as registries have layers: so it is fetched and kept as it is, and not compressed on the way.
            compressed = ["--dest-compress", "--dest-compress-format=gzip"]
            subprocess.run(["skopeo", "copy", "-q", *compressed, source, f"dir:{layout}"], check=True)
            archive.unlink()
        return layout

    def _pull(self, line: SlowLine) -> list[Span]:
        """A full pull, unpack and import."""
        self._nodes += 1
        node = self._scratch / f"node-{self._nodes}"
        node.mkdir()
        _drop_caches()
        quiet = partial(subprocess.run, check=True, cwd=node, capture_output=True)
        begin = time.monotonic()
        source = f"docker://127.0.0.1:{line.port}/torch:1"
        quiet(["skopeo", "copy", "-q", "--src-tls-verify=false", source, "oci:image:1"])
        pulled = time.monotonic()
        quiet(["umoci", "unpack", "--image", "image:1", "bundle"])
        unpacked = time.monotonic()
        path = node / "bundle/config.json"
        config = json.loads(path.read_text())
        config["process"] |= {"args": [self._python, *_PROGRAM], "terminal": False}
        config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
        path.write_text(json.dumps(config))
        done = quiet(["runc", "--root", str(node / "runc"), "run", "--bundle", "bundle", f"cold-{self._nodes}"])
        shutil.rmtree(node)
        spans = [Span("pull", pulled - begin), Span("unpack", unpacked - pulled)]
        return spans + _imported(done.stdout.decode(), unpacked)


def _lacking_to_pull() -> list[str]:
    return [program for program in ("skopeo", "umoci", "runc") if shutil.which(program) is None]


def _imported(said: str, asked: float) -> list[Span]:
    """What a container has said, that was asked for at that time."""
    found = re.search(r"imported (\S+) (\S+)", said)
    if found is None:
        raise RuntimeError(f"the import failed: {said}")
    begin, end = float(found[1]), float(found[2])
    return [Span("container and Python start", begin - asked), Span("import torch", end - begin)]


class _Registry(http.server.BaseHTTPRequestHandler):
    """What a registry answers to a pull, from a skopeo `dir:`."""

    protocol_version = "HTTP/1.1"
    layout: Path

    def do_GET(self) -> None:
        found = re.fullmatch(r"/v2/torch/(manifests|blobs)/(?:sha256:)?([0-9a-z]+)", self.path)
        if found is None:
            self._answer(b"{}", "application/json")
        elif found[1] == "manifests":
            manifest = (self.layout / "manifest.json").read_bytes()
            self._answer(manifest, json.loads(manifest)["mediaType"])
        else:
            blob = self.layout / found[2]
            self.send_response(200)
            self.send_header("Content-Length", str(blob.stat().st_size))
            self.send_header("Content-Type", "application/octet-stream")
            self.end_headers()
            with open(blob, "rb") as file:
                self.connection.sendfile(file)

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _registry(layout: Path) -> Generator[int]:
    """Serves the image; its port."""
    handler = type("Handler", (_Registry,), {"layout": layout})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def _wait_for_profile(store: Store, tree: str) -> None:
    """The launcher's server writes it down a moment after the last file was opened, and sends it."""
    path = store.root / "profiles" / tree
    deadline = time.monotonic() + 20.0
    begin = time.time()
    while time.monotonic() < deadline:
        time.sleep(0.1)
        if path.exists() and time.time() - max(begin, path.stat().st_mtime) > _PROFILE_SECONDS:
            return


def _drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


@contextmanager
def peer() -> Generator[Mapping[str, Measurement]]:
    if os.geteuid() != 0:
        raise RuntimeError("lazy images and dropping the page cache need root")
    scratch = Path(tempfile.gettempdir(), "cold")
    scratch.mkdir(exist_ok=True)
    # What is built stays for the next round, and goes with the whole benchmark.
    cold = Cold(scratch)
    yield {"cold node": cold.measure, "once fetched": cold.once_fetched}


if __name__ == "__main__":
    run(peer)
