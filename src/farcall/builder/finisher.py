"""Finishing an image: what its containers need beyond its files, its Python and farcall's own files for that."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, NamedTuple

import msgspec

from farcall import errors
from farcall.builder import commands
from farcall.builder.build import Build
from farcall.builder.containers import StepContainers
from farcall.builder.elsewhere import Elsewhere
from farcall.builder.images import IMAGES, PYTHONS, Image, Images, Python, image_id
from farcall.builder.keys import python_key_of
from farcall.builder.requests import State
from farcall.builder.shared import Say, SharedWork
from farcall.builder.tidier import Tidier
from farcall.content.lease import Lease
from farcall.content.store import Store
from farcall.interpreters import private
from farcall.interpreters.probe import details_of, program, report_in

_LOOK_SECONDS = 30.0  # between looks for another machine's bytecode
_ELSEWHERE_SECONDS = 900.0  # for which an image that is not all here is left to the machine that built it


class _Lacking(NamedTuple):
    """Since when an image lacks its bytecode here, and when that was last looked for elsewhere."""

    since: float
    looked: float


class Finisher:
    """Makes images of states. All methods belong to one event loop."""

    def __init__(
        self,
        store: Store,
        images: Images,
        containers: StepContainers,
        elsewhere: Elsewhere,
        tidier: Tidier,
        mounts: bool,
    ) -> None:
        """`mounts` says that containers of the images run on this machine: then they are made ready for that."""
        self._mounts = mounts
        self._store = store
        self._images = images
        self._containers = containers
        self._elsewhere = elsewhere
        self._tidier = tidier
        self._finishes: SharedWork[Image] = SharedWork()
        self._compiling: dict[str, asyncio.Future[None]] = {}
        self._lacking: dict[str, _Lacking] = {}  # images that have not all arrived, and have no bytecode
        self._compiler = asyncio.Lock()  # one at a time: it has all the time there is
        self._log = logging.getLogger("farcall.builder")

    async def finish(self, state: State, build: Build) -> Image:
        """The image of a state, ready to start containers from: its Python known, the runner's files for it made, its
        file system prepared for mounting."""
        name = image_id(state.tree, state.config)
        fetching = None
        if self._images.find(name) is None and not self._store.tree_path(state.tree).exists():
            fetching = build.progress.step("fetch the image", name)
            fetching.running()
        heard = _unheard if fetching is None else fetching.say
        try:
            image = await self._finishes.do(name, lambda say: self._finished(name, state, build, say), heard)
        except errors.FarcallError:
            if fetching is not None:
                fetching.failed()
            raise
        if fetching is not None:
            fetching.done()
        return image

    async def _finished(self, name: str, state: State, build: Build, say: Say) -> Image:
        # A lease of its own, as for a step.
        with self._store.lease("image") as lease:
            image = self._images.find(name)
            if image is None or not image.probed:
                image = None if build.alone else await self._found_elsewhere(name)
                if image is None:
                    image = Image(name, state.tree, state.tree, state.config, await self.python(lease, state, build))
                    with build.fetching():
                        await self._elsewhere.bring(lease, (state.tree,), say)
                else:
                    with build.fetching():
                        await self._elsewhere.announce(lease, (image.tree, image.root))
                if self._mounts:
                    with build.fetching():  # what it lacks, where mounts cannot fetch it later
                        await self._containers.prepare(lease, image.root)
                self._images.put(image)
            lease.keep_tree(image.root)
            if image.python is not None and private.existing(image.python.details()) is None:
                await self._make_runner(lease, image)
            return image

    async def _found_elsewhere(self, name: str) -> Image | None:
        record = await self._elsewhere.record(IMAGES, name, Image)
        image = None if record is None else msgspec.convert(record.data, Image)
        return image if image is not None and image_id(image.tree, image.config) == image.image_id == name else None

    async def _make_runner(self, lease: Lease, image: Image) -> None:
        """farcall's own files for the image's Python, compiled by it."""
        assert image.python is not None
        details = image.python.details()
        work = await asyncio.to_thread(private.assemble, details)
        try:
            command = commands.compile_runner(details.executable, str(work))
            state = State(image.root, image.config)
            await self._containers.run(lease, state, command, _unheard, keep=False)
        finally:
            await asyncio.to_thread(private.publish, work, details)

    # --- its Python

    async def python(self, lease: Lease, state: State, build: Build) -> Python | None:
        """The Python that the image's PATH leads to, asked once for each tree; None where there is none we can use."""
        key = python_key_of(state)
        record = self._store.record(PYTHONS, key)
        if record is not None:
            return msgspec.convert(record.data, Python) if record.data else None
        record = None if build.alone else await self._elsewhere.record(PYTHONS, key, Python)
        if record is None:
            with build.fetching():
                await self._elsewhere.bring(lease, (state.tree,), _unheard)
            asked = await self._ask_python(lease, state)
            data: dict[str, Any] = {} if asked is None else msgspec.to_builtins(asked)
        else:
            data = record.data
        self._store.put_record(PYTHONS, key, data=data)
        return msgspec.convert(data, Python) if data else None

    async def _ask_python(self, lease: Lease, state: State) -> Python | None:
        for name in ("python3", "python"):
            lines: list[str] = []
            command = commands.StepCommand((name, "-c", program()), name)
            try:
                await self._containers.run(lease, state, command, lines.append, keep=False)
            except errors.ImageBuildError:
                continue
            report = report_in("".join(lines))
            if report is None or report["implementation"] != "cpython":
                continue
            version = tuple(int(part) for part in report["version"].split("."))
            if version < (3, 11):
                continue
            found = details_of(report)
            return Python(found.executable, found.version, found.tag, found.soabi, found.prefix, found.sys_path)
        return None

    # --- bytecode

    def compile(self, image: Image) -> None:
        """Begins to compile what is installed in an image, unless that is done or being done.

        Where the image has not all arrived, that would fetch all its source, while whoever built it most likely
        compiles it: so its bytecode is looked for, now and then, and made here only if that does not come.
        """
        name = image.image_id
        if image.python is None or image.compiled or name in self._compiling:
            return
        now = time.monotonic()
        lacking = self._lacking.get(name, _Lacking(now, float("-inf")))
        if not self._store.partial_path(image.tree).exists() or now - lacking.since >= _ELSEWHERE_SECONDS:
            self._compiling[name] = asyncio.ensure_future(self._compile(image, image.python))
        elif now - lacking.looked >= _LOOK_SECONDS:
            self._lacking[name] = lacking._replace(looked=now)
            self._compiling[name] = asyncio.ensure_future(self._adopt_bytecode(image))

    def is_compiling(self, image: Image) -> bool:
        """Whether that goes on."""
        return image.image_id in self._compiling

    async def settle(self) -> None:
        """Returns when nothing is compiled any more."""
        while self._compiling:
            await asyncio.wait(self._compiling.values())

    async def close(self) -> None:
        """Ends what goes on."""
        for task in list(self._compiling.values()):
            task.cancel()
        await asyncio.gather(*self._compiling.values(), return_exceptions=True)

    async def _adopt_bytecode(self, image: Image) -> None:
        """Takes what another machine has compiled since this one found the image there."""
        try:
            found = await self._found_elsewhere(image.image_id)
            if found is not None and found.compiled:
                with self._store.lease("compile") as lease:
                    await self._elsewhere.announce(lease, (found.tree, found.root))
                    if self._mounts:
                        await self._containers.prepare(lease, found.root)
                    self._images.put(msgspec.structs.replace(image, root=found.root, compiled=True))
                    self._lacking.pop(image.image_id, None)
        except errors.FarcallError as error:
            self._log.warning("the bytecode of image %s was not fetched: %s", image.image_id, error)
        finally:
            del self._compiling[image.image_id]
            self._elsewhere.push()

    async def _compile(self, image: Image, python: Python) -> None:
        """Compiles what is installed in an image, for the containers that start when that is done. The image can be
        used meanwhile: its containers compile what they import, as they would anywhere."""
        try:
            async with self._compiler:
                with self._store.lease("compile") as lease:
                    lease.keep_tree(image.tree)
                    state = State(image.tree, image.config, python.executable)
                    command = commands.compile_bytecode(python.executable, python.sys_path)
                    root = await self._containers.run(lease, state, command, _unheard)
                    if self._mounts:
                        await self._containers.prepare(lease, root)
                    self._images.put(msgspec.structs.replace(image, root=root, compiled=True))
                    self._lacking.pop(image.image_id, None)
                    await self._tidier.tidy()
        except errors.FarcallError as error:
            self._log.warning("the bytecode of image %s was not compiled: %s", image.image_id, error)
        finally:
            del self._compiling[image.image_id]
            self._elsewhere.push()


def _unheard(line: str) -> None:
    """What is said is for nobody."""
