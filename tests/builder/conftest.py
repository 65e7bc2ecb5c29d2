"""A builder with its worker, and an image of a few programs to build on: nothing of it needs a network."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from farcall.builder.builder import Builder
from farcall.builder.containers import StepContainers
from farcall.builder.elsewhere import Elsewhere
from farcall.builder.images import Image
from farcall.builder.oci.endpoint import DIRECTLY, Access
from farcall.content.ingest import ingest_directory
from farcall.content.store import Store
from farcall.content.tree import Tree
from farcall.spec.image import Copy, ImageSpec, ScratchBase, Step
from farcall.wire.builds import BuildEvent
from farcall.worker.filesystems import Filesystems
from farcall.worker.worker import Worker
from tests.conftest import short_directory

PROGRAMS = (
    "sh",
    "cat",
    "ls",
    "id",
    "rm",
    "mkdir",
    "chown",
    "touch",
    "env",
    "stat",
    "sleep",
    "ln",
    "chmod",
    "tail",
    "seq",
)
T = TypeVar("T")


class Workshop:
    """A builder on a store and a launcher of its own, with synchronous calls."""

    def __init__(self, root: Path, programs: Path, object_store: str = "") -> None:
        self.object_store = object_store
        self.store = Store(root / "content")
        self.programs = programs
        self.root = root
        self.runner = asyncio.Runner()
        self._builders: list[Builder] = []
        self.runner.run(self._open())
        self.events: list[BuildEvent] = []

    async def _open(self) -> None:
        self.worker = Worker(self.root / "launcher", "sr-test", lambda *text: None, Filesystems(self.store))
        self.builder = self.another()

    def another(self) -> Builder:
        """A further builder on the same store, as another server would have."""
        elsewhere = Elsewhere(self.store, self.object_store, "")
        cache = self.root / "cache"
        builder = Builder(self.store, StepContainers(self.worker, cache), cache, elsewhere=elsewhere)
        self._builders.append(builder)
        return builder

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the builder's loop."""
        return self.runner.run(work)

    def context(self, files: dict[str, str], folder: Path) -> str:
        """A tree of files with these texts."""
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return self.ingest(folder)

    def ingest(self, folder: Path) -> str:
        """A folder as a tree that stays for the test."""
        with self.store.lease("test") as lease:
            tree = ingest_directory(lease, folder)
            self.store.put_record("tests", tree, trees=(tree,))
        return tree

    def spec(self, *steps: Step) -> ImageSpec:
        """An image on the programs."""
        base = Copy(target="/", sources=(".",), tree=self.ingest(self.programs))
        return ImageSpec(ScratchBase(), (base, *steps))

    async def build_async(
        self,
        spec: ImageSpec,
        *,
        secrets: dict[str, str] | None = None,
        force: bool = False,
        builder: Builder | None = None,
        access: Access = DIRECTLY,
    ) -> Image:
        self.events = []
        return await (builder or self.builder).build(spec, secrets or {}, force, self.events.append, access)

    def build(self, *steps: Step, **options: Any) -> Image:
        """The image of these steps on the programs."""
        return self.run(self.build_async(self.spec(*steps), **options))

    def tree(self, image: Image) -> Tree:
        """What the image holds."""
        return self.store.tree(image.tree)

    def text(self, image: Image, path: str) -> str:
        """A file's content."""
        entry = self.tree(image).get(path.lstrip("/").encode())
        assert entry is not None, f"there is no {path}"
        return self.store.read(entry.digest).decode() if entry.size else ""

    @property
    def states(self) -> list[str]:
        """The last state of each step of the last build."""
        last: dict[int, str] = {}
        for event in self.events:
            last[event.step] = event.state
        return [last[number] for number in sorted(last)]

    @property
    def output(self) -> str:
        """What the steps of the last build printed."""
        return "".join(event.text for event in self.events)

    def close(self) -> None:
        async def close() -> None:
            for builder in self._builders:
                await builder.close()
            await self.worker.close()

        self.run(close())
        self.runner.close()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with programs, and the libraries that they load."""
    root = tmp_path_factory.mktemp("programs")
    for name in ("bin", "etc", "root", "tmp", "work"):
        (root / name).mkdir()
    needed: set[str] = set()
    for program in PROGRAMS:
        found = shutil.which(program)
        assert found is not None
        shutil.copy(found, root / "bin" / program)
        needed.update(re.findall(r"(/\S+)", subprocess.run(["ldd", found], capture_output=True, text=True).stdout))
    for library in needed:
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nada:x:1000:1001::/home/ada:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nada:x:1001:\nmusic:x:50:ada\n")
    return root


@pytest.fixture(scope="module")
def workshop(programs: Path) -> Iterator[Workshop]:
    """A builder that the tests of a module share."""
    with short_directory() as root:
        made = Workshop(root, programs)
        yield made
        made.close()


@pytest.fixture
def context(workshop: Workshop, tmp_path: Path) -> Callable[[dict[str, str]], str]:
    """Makes a tree of files with these texts."""
    return lambda files: workshop.context(files, tmp_path / "context")
