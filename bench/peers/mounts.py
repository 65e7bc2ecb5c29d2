"""A built image of more than 100,000 files as containers see it: mounted, started on, imported from; and in memory.

The same tree is there in three forms: EROFS over the store's objects, a directory of hard links to them, and a plain
copy. Containers are those of the launcher. What is built is left for the next round and goes with the whole benchmark.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import mmap
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.peers import Measurement, Result, run
from bench.peers.builds import TORCH, Workshop
from bench.samples import median
from farcall import mounts
from farcall.builder.debian import PYTHON
from farcall.builder.images import Image
from farcall.content.ingest import ingest_directory
from farcall.content.lease import Lease
from farcall.launcher import image_root, namespaces, syscalls
from farcall.launcher.area import make_layer
from farcall.launcher.stage import Stage
from farcall.runner import imports as imports_of_runner
from farcall.spec.container import Bind, ContainerSpec, Limits, MountMode, TreeMount
from farcall.spec.image import Apt, Copy, DebianBase, ImageSpec, Pip, Step

EROFS, LINKS, PLAIN = "EROFS", "hard links", "plain directory"
FILES = 100_000
FILES_IN_FOLDER = 50
MOUNTS = 20
STARTS = 15
WARM_IMPORTS, COLD_IMPORTS = 7, 5
_LIBRARY = "libtorch_cpu.so"
# In a container: when its first line ran, and how long an import takes.
_FIRST_LINE = "import time; print(time.monotonic())"
_IMPORT = "import time; begin = time.monotonic(); import {}; print(time.monotonic() - begin)"
# What a runner does at the end of a function's first container.
_IMPORTED = inspect.getsource(imports_of_runner) + "\nprint(*imported_files(), sep=chr(0))"


class Forms(NamedTuple):
    """One image, in the forms that a container's root can have."""

    roots: Mapping[str, TreeMount]
    plain: Path


class Images:
    """What is measured, built when it is first asked for; kept by a lease."""

    def __init__(self, scratch: Path, workshop: Workshop, lease: Lease) -> None:
        self.scratch = scratch
        self.workshop = workshop
        self._lease = lease

    def first(self) -> Forms:
        """Debian with torch, numpy and 100,000 small files, in each form."""
        files = self.scratch / "files"
        if not files.exists():
            _make_files(files)
        copied = Copy(target="/srv/files/", sources=(".",), tree=ingest_directory(self._lease, files))
        image = self._build(Pip("uv", (TORCH, "numpy")), copied)
        self.workshop.settle()
        tree = self.workshop.builder.images.get(image.image_id).root  # bytecode included
        prepared = {
            EROFS: self._prepare(tree, MountMode("erofs")),
            LINKS: self._prepare(tree, MountMode("directory")),
        }
        plain = self.scratch / f"plain-{tree[:16]}"
        if not plain.exists():
            made = self.scratch / "plain"
            subprocess.run(["cp", "-a", "--reflink=never", prepared[LINKS].path, made], check=True)
            os.sync()
            made.rename(plain)
        return Forms({**prepared, PLAIN: TreeMount("directory", str(plain))}, plain)

    def second(self) -> TreeMount:
        """Another image with torch, made by steps that have nothing in common with the first one's."""
        return self._prepare(self._build(Apt(("hello",)), Pip("uv", (TORCH,))).tree, MountMode("erofs"))

    def _build(self, *steps: Step) -> Image:
        spec = ImageSpec(DebianBase(PYTHON), steps)
        return self.workshop.run(self.workshop.builder.build(spec, {}, False, lambda event: None))

    def _prepare(self, tree: str, mode: MountMode) -> TreeMount:
        return mounts.prepare(self._lease, tree, mode)

    def run(self, root: TreeMount, program: str, binds: tuple[Bind, ...] = (), imports: str = "") -> str:
        """Runs a Python program in a container; what it prints."""
        said: list[str] = []
        spec = ContainerSpec(
            container_id=f"ta-{os.urandom(10).hex()}",
            interpreter=None,
            limits=Limits(cpu_request=1),
            binds=binds,
            root=root,
            command=("/usr/bin/env", "python3", "-I", "-c", program),
            imports=imports,
        )
        exited, _ = self.workshop.run(self.workshop.worker.run(spec, said.append))
        if exited.exit_code != 0:
            raise RuntimeError(f"the container ended with status {exited.exit_code}: {''.join(said)[-500:]}")
        return "".join(said).strip()


def mount(images: Images) -> Iterator[Result]:
    """The layers of a root file system and the overlay above them, mounted as a container's pid 1 does."""
    roots = images.first().roots
    area = images.scratch / "area"
    area.mkdir(exist_ok=True)

    def measure() -> dict[str, float]:
        syscalls.unshare(syscalls.NEWNS)
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        place = namespaces.enter()
        taken: dict[str, list[float]] = {name: [] for name in roots}
        for _ in range(MOUNTS):
            for name, root in roots.items():
                stage = Stage(str(area), str(area), place.idmap_fd)
                make_layer("disk")
                begin = time.perf_counter()
                image_root.lay(stage.layers(root), own_userns=False)
                taken[name].append(time.perf_counter() - begin)
                found = sum(len(names) for _, _, names in os.walk("merged/srv/files")) if not taken[name][1:] else FILES
                assert found == FILES, f"{found} files are there"
                stage.leave()
        return {name: 1e3 * median(values) for name, values in taken.items()}

    for name, value in _in_child(measure).items():
        yield Result("mount of 100,000 files", name, value, MOUNTS)


def starts(images: Images) -> Iterator[Result]:
    """From the request to the first line of a Python program that is in the image."""
    roots = images.first().roots
    taken: dict[str, list[float]] = {name: [] for name in roots}
    for number in range(STARTS + 2):
        for name, root in roots.items():
            begin = time.monotonic()
            first_line = float(images.run(root, _FIRST_LINE))
            if number >= 2:
                taken[name].append(first_line - begin)
    for name, values in taken.items():
        for row in ("container on 100,000 files", "container on hard links"):
            yield Result(row, name, 1e3 * median(values), len(values))


def imports(images: Images, module: str, *, cold: bool) -> Iterator[Result]:
    """An import in a container that is not its function's first; and in one of the same image, whose /usr is that of a
    plain tree on the disk."""
    forms = images.first()
    root = forms.roots[EROFS]
    contenders = {EROFS: (), PLAIN: (Bind(str(forms.plain / "usr"), "/usr"),)}
    imported = images.scratch / f"imports-{module}"
    imported.write_text(images.run(root, f"import {module}\n{_IMPORTED}"))
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range((COLD_IMPORTS if cold else WARM_IMPORTS) + 1):
        for name in contenders if number % 2 else reversed(contenders):
            if cold:
                _drop_caches()
            value = float(images.run(root, _IMPORT.format(module), contenders[name], str(imported)))
            if number:
                taken[name].append(value)
    for name, values in taken.items():
        yield Result(f"import {module}, {'cold' if cold else 'warm'}", name, 1e3 * median(values), len(values))


def shared_memory(images: Images) -> Iterator[Result]:
    """The pages of torch's library in memory, as two images see them, when it was read in one of them, then in both."""
    roots = (images.first().roots[EROFS], images.second())
    area = images.scratch / "area"
    area.mkdir(exist_ok=True)

    def measure() -> tuple[float, float]:
        syscalls.unshare(syscalls.NEWNS)
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        stage = Stage(str(area), str(area), namespaces.enter().idmap_fd)
        one, other = (next(Path(stage.read_only(stage.layers(root))).rglob(_LIBRARY)) for root in roots)
        _drop_caches()
        if (before := _resident(other)) > 0.1:
            raise RuntimeError(f"{before:.0%} of {_LIBRARY} are in memory though nobody has read it")
        cached = _cached()
        _read(one)
        seen = _resident(other)
        _read(other)
        return 100 * seen, (_cached() - cached) / one.stat().st_size

    seen, copies = _in_child(measure)
    yield Result("torch read in another image", EROFS, seen, 1)
    yield Result("torch in memory, two images", EROFS, copies, 1)


def _make_files(root: Path) -> None:
    for number in range(FILES):
        folder = root / f"part{number // FILES_IN_FOLDER // 100}" / f"folder{number // FILES_IN_FOLDER}"
        if number % FILES_IN_FOLDER == 0:
            folder.mkdir(parents=True)
        (folder / f"file{number}").write_text(f"{number}\n")


def _in_child(measure: Callable[[], Any]) -> Any:
    """Calls it in a process of its own, which may change its namespaces."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        try:
            answer = {"value": measure()}
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(send, json.dumps(answer).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as answers:
        answer = json.loads(answers.read())
    os.waitpid(pid, 0)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["value"]


def _drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def _cached() -> int:
    """Bytes of the page cache."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Cached:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/meminfo has no line Cached")


def _resident(path: Path) -> float:
    """The share of a file's pages that are in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=3) as mapped:
        pages = -(-len(mapped) // mmap.PAGESIZE)
        states = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(mapped)
        if libc.mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), states):
            raise OSError(ctypes.get_errno(), "mincore")
        del start
        return sum(state & 1 for state in states) / pages


def _read(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


@contextmanager
def peer() -> Generator[Mapping[str, Measurement]]:
    if os.geteuid() != 0:
        raise RuntimeError("EROFS and dropping the page cache need root")
    scratch = Path(tempfile.gettempdir(), "mounts")
    scratch.mkdir(exist_ok=True)
    workshop = Workshop(scratch)
    try:
        with workshop.store.lease("bench") as lease:
            images = Images(scratch, workshop, lease)
            yield {
                "mount": partial(mount, images),
                "starts": partial(starts, images),
                "import numpy, warm": partial(imports, images, "numpy", cold=False),
                "import numpy, cold": partial(imports, images, "numpy", cold=True),
                "import torch, warm": partial(imports, images, "torch", cold=False),
                "import torch, cold": partial(imports, images, "torch", cold=True),
                "shared memory": partial(shared_memory, images),
            }
    finally:
        workshop.close()


if __name__ == "__main__":
    run(peer)
