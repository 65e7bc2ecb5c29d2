"""An image that is in a tier only, and what can happen to a tier: it is gone, it hangs, it lies."""

import contextlib
import os
import select
import shutil
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from launcher_harness import Rig, Running, eventually

from farcall.content.ingest import ingest_directory
from farcall.content.lease import Lease
from farcall.content.store import Store
from farcall.content.tiers.directory import DirectoryTier
from farcall.content.tiers.pusher import Pusher
from farcall.content.tree import Tree
from farcall.mounts.lazy.sources import Source, set_sources
from farcall.spec.container import Bind, TreeMount


class Pushed(NamedTuple):
    """An image in a tier."""

    tier: Path
    tree: Tree


def push(place: Path, image: Path) -> Pushed:
    """Puts an image into a new tier."""
    source, tier = Store(place / "source"), place / "tier"
    with source.lease("test") as lease:
        tree = ingest_directory(lease, image, keep_owner=True)
        Pusher(source, DirectoryTier(tier)).push_tree(tree)
    return Pushed(tier, source.tree(tree))


def program_that_needs(library: str) -> bytes:
    """As much of a program as says that it needs this library."""
    header, load, dynamic, strings = 64, 56, 56, 48
    at = header + load + dynamic
    names = b"\0" + library.encode() + b"\0"
    size = at + strings + len(names)
    table = struct.pack("<qQqQqQ", 1, 1, 5, at + strings, 0, 0)
    return b"".join(
        (
            struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, header, 0, 0, 64, 56, 2, 0, 0, 0),
            struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, size, size, 4096),
            struct.pack("<IIQQQQQQ", 2, 6, at, at, at, strings, strings, 8),
            table,
            names,
        )
    )


class FarImage:
    """An image whose tree is in a store, and whose files are in a directory tier. Close it."""

    def __init__(self, place: Path, pushed: Pushed, rig: Rig) -> None:
        self.rig = rig
        self.tree = pushed.tree.id
        place.mkdir(exist_ok=True)
        self.tier = place / "tier"
        shutil.copytree(pushed.tier, self.tier)
        self.store = Store(place / "store")
        set_sources(self.store, [Source(str(self.tier))])
        self.lease: Lease = self.store.lease("containers")
        self.lease.add_tree(pushed.tree, partial=True)
        self._go = place / "go"
        os.mkfifo(self._go)
        self._go.chmod(0o666)
        self._log_begins = len(self._whole_log())

    def mount(self) -> TreeMount:
        """As the worker asks for it."""
        return self.rig.wait(self.rig.client.prepare_tree(str(self.store.root), self.lease.id, self.tree)).mount

    def start(self, script: str, mount: TreeMount | None = None) -> Running:
        """A container that runs a shell script. It has a command `go`, which waits."""
        command = ("sh", "-c", f"go() {{ cat /go; }}; {script}")
        root = mount or self.mount()
        go = Bind(str(self._go), "/go")
        start = self.rig.start_async("", interpreter=None, command=command, cwd="/", root=root, binds=(go,))
        return self.rig.wait(start)

    def go(self) -> None:
        """Let a script go on that says `go`."""
        self._go.write_text("")

    def output(self, script: str, mount: TreeMount | None = None) -> str:
        """What a script prints, which must succeed."""
        result = self.start(script, mount).result()
        assert result.exited.exit_code == 0, result.output
        return result.output

    def digest(self, path: str) -> bytes:
        """Of a file."""
        entry = self.store.tree(self.tree).get(path.encode())
        assert entry is not None
        return entry.digest

    def is_here(self, path: str) -> bool:
        """Whether the store has the file."""
        return self.store.has(self.digest(path))

    def lose(self, path: str) -> None:
        """The store has the file no more, as if it had never been opened; nor is it in anybody's memory."""
        eventually(lambda: self.is_here(path), f"{path}, which came with what was opened")
        os.unlink(self.store.path_of(self.digest(path)))
        (self.store.root / "partial" / self.tree).touch()

    @property
    def log(self) -> str:
        """What the launcher and its servers have said in this test."""
        return self._whole_log()[self._log_begins :]

    def server(self) -> int:
        """The pid of the process that serves missing files."""
        [found] = servers_of(self.store.root)
        return found

    @contextmanager
    def off(self) -> Iterator[None]:
        """The tier cannot be reached."""
        away = self.tier.with_name("away")
        self.tier.rename(away)
        self.tier.symlink_to(self.tier.name)  # to itself
        try:
            yield
        finally:
            self.tier.unlink()
            away.rename(self.tier)

    @contextmanager
    def hanging(self) -> Iterator["Hanging"]:
        """The tier answers nothing until the end of this: then what it was asked for arrives."""
        packs, whole = self.tier / "packs", self.tier.with_name("whole")
        packs.rename(whole)
        hanging = Hanging(whole, packs)
        try:
            yield hanging
        finally:
            hanging.pipes_to(self.tier.with_name("pipes"))
            whole.rename(packs)
            hanging.answer(packs)

    def close(self) -> None:
        """Let go of the tree."""
        self.lease.close()

    def _whole_log(self) -> str:
        return (self.rig.state / "launcher.log").read_text()


class Hanging:
    """Pipes in place of blobs. The first byte is in each, so that one that is being read is known by its lack."""

    def __init__(self, whole: Path, place: Path) -> None:
        self._pipes: dict[Path, int] = {}
        for path in whole.rglob("*"):
            if path.is_file():
                name = path.relative_to(whole)
                pipe = place / name
                pipe.parent.mkdir(parents=True, exist_ok=True)
                os.mkfifo(pipe)
                self._pipes[name] = os.open(pipe, os.O_RDWR)
                os.write(self._pipes[name], path.read_bytes()[:1])
        self._place, self._whole = place, whole

    def asked(self) -> int:
        """How many blobs somebody waits for."""
        return sum(not select.select([fd], [], [], 0)[0] for fd in self._pipes.values())

    def again(self) -> None:
        """Those who had begun to read are dead: the next ones begin at the beginning."""
        for name, fd in self._pipes.items():
            if not select.select([fd], [], [], 0)[0]:
                os.write(fd, (self._whole / name).read_bytes()[:1])

    def pipes_to(self, place: Path) -> None:
        """Take them out of the way."""
        self._place = self._place.rename(place)

    def answer(self, whole: Path) -> None:
        """Let those who wait have the rest."""
        threads = [
            threading.Thread(target=self._write, args=(fd, (whole / name).read_bytes()[1:]))
            for name, fd in self._pipes.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shutil.rmtree(self._place)

    def _write(self, fd: int, rest: bytes) -> None:
        writer = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
        os.close(fd)  # which could be read from, too: now a reader that is gone is seen
        with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "wb") as stream:
            stream.write(rest)


def servers_of(store: Path) -> list[int]:
    """The pids of the processes that serve missing files of a store."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                arguments = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"farcall.mounts.lazy" in arguments and os.fsencode(store) in arguments:
                found.append(int(name))
    return found
