"""What programs ask about images: to build them, and to be called by a name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import msgspec

from farcall import errors
from farcall.builder.builder import Builder
from farcall.builder.images import Image
from farcall.builder.oci.endpoint import Access
from farcall.content.store import Store
from farcall.interpreters import private
from farcall.spec.container import Interpreter
from farcall.spec.function import FunctionSpec
from farcall.spec.image import ImageSpec
from farcall.wire import builds
from farcall.wire.descriptors import close_all
from farcall.wire.memory import from_memory
from farcall.worker.filesystems import Root

if TYPE_CHECKING:
    from farcall.server.session import Session

_APPS = "apps"  # the kind of the records that keep what apps rely on
_ROOT_SECONDS = 5.0  # for which what is known of an image counts: its bytecode may have come since

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(ImageSpec).decode


class ImageBuilds:
    """The builds that sessions wait for, and the content that apps rely on."""

    def __init__(self, builder: Builder, store: Store) -> None:
        self._builder = builder
        self._store = store
        self._tasks: dict[tuple[Session, int], asyncio.Task[Image]] = {}
        self._roots: dict[str, tuple[float, Root]] = {}

    @property
    def running(self) -> int:
        """Builds that somebody waits for."""
        return len(self._tasks)

    @property
    def is_pushing(self) -> bool:
        """Whether what was built is on its way to other machines."""
        return self._builder.elsewhere.is_pushing

    def go_on(self) -> None:
        """Pushes what an earlier server built and did not get to push."""
        self._builder.elsewhere.push()

    async def build(self, session: Session, message: builds.BuildImage, fds: tuple[int, ...]) -> bytes:
        """Builds an image, telling the session how it goes on; the body of the answer."""
        try:
            encoded = from_memory(fds[0]) if message.descriptors and fds else message.image
        finally:
            close_all(fds)
        try:
            spec = _decode(encoded)
        except msgspec.DecodeError as error:
            raise errors.ProtocolError(f"that is no image: {error}") from None

        def send(event: builds.BuildEvent) -> None:
            session.send(msgspec.structs.replace(event, seq=message.seq))

        access = Access(message.registry, message.insecure_registries)
        task = asyncio.ensure_future(self._builder.build(spec, message.secrets, message.force, send, access))
        self._tasks[session, message.seq] = task
        try:
            image = await task
        except asyncio.CancelledError:
            raise errors.InputCancelledError("the build was cancelled: nobody waits for it any more") from None
        finally:
            del self._tasks[session, message.seq]
        return _encode(builds.BuiltImage(image.image_id, image.config, image.python.version if image.python else ""))

    def cancel(self, session: Session, seq: int) -> None:
        """Nobody waits any more for the build that the session's request `seq` asked for."""
        task = self._tasks.get((session, seq))
        if task is not None:
            task.cancel()

    def session_closed(self, session: Session) -> None:
        """What only this session waited for ends."""
        for (other, _), task in list(self._tasks.items()):
            if other is session:
                task.cancel()

    def publish(self, message: builds.PublishImage) -> None:
        """Gives an image a name."""
        self._builder.images.publish(message.image_id, message.name)

    def keep(self, app_id: str, functions: Iterable[FunctionSpec]) -> None:
        """Keeps the images and source of an app's functions in the store, beside what the app has there already, until
        `forget`. Raises NotFoundError for what is not there."""
        record = self._store.record(_APPS, app_id)
        trees = dict.fromkeys(record.trees if record else ())
        for function in functions:
            trees |= dict.fromkeys(tree.tree_id for tree in function.trees)
            if function.image_id:
                image = self._builder.images.get(function.image_id)
                trees |= {image.tree: None, image.root: None}
        if trees:
            self._store.put_record(_APPS, app_id, trees=trees, pinned=True)

    def forget(self, app_id: str) -> None:
        """An app has stopped."""
        self._store.delete_record(_APPS, app_id)

    def forget_all_but(self, app_ids: Collection[str]) -> None:
        """No other app runs, whatever an earlier server has left."""
        for record in self._store.records(_APPS):
            if record.key not in app_ids:
                self.forget(record.key)

    async def close(self) -> None:
        """Ends all builds, and returns when they have ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._builder.close()

    def root(self, image_id: str) -> Root:
        """What containers of an image are made from. Raises NotFoundError, and InvalidError for an image whose Python
        cannot run functions."""
        asked, root = self._roots.get(image_id, (0.0, None))
        if root is None or time.monotonic() - asked > _ROOT_SECONDS:
            root = self._find_root(image_id)
            self._roots[image_id] = time.monotonic(), root
        return root

    def _find_root(self, image_id: str) -> Root:
        image = self._builder.images.get(image_id)
        if image.python is None:
            raise errors.InvalidError(
                f"the image {image_id} has no Python 3.11 or newer to run functions with: choose a base that has "
                'one, or from_registry(..., add_python="3.12")'
            )
        details = image.python.details()
        runner = private.existing(details)
        if runner is None:
            raise errors.NotFoundError(
                f"farcall's own files for the Python {details.version} of image {image_id} are not here (any more): "
                "run the program again, which makes them"
            )
        interpreter = Interpreter(details.executable, details.version, details.tag, (), str(runner))
        return Root(image.root, interpreter, image.config.env, image.config.workdir, image.config.entrypoint)
