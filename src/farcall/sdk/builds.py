"""Building images: the descriptions go to the server, which tells how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from farcall import errors
from farcall.sdk import client as clients
from farcall.sdk import events, output
from farcall.sdk.embedded import program_settings
from farcall.sdk.image import Image
from farcall.sdk.image_parts import Resolution
from farcall.sdk.local_trees import LocalTrees
from farcall.spec.image import encode
from farcall.wire import descriptors, messages
from farcall.wire.builds import BuildEvent, BuildImage, BuiltImage, CancelBuild, PublishImage
from farcall.wire.connection import Waiter
from farcall.wire.memory import INLINE_LIMIT, to_memory

_LABEL_NAMES = 2  # functions that are named in an image's label


class _Wanted(NamedTuple):
    """An image to be built, for all `Image` objects that describe the same."""

    encoded: bytes
    images: list[Image]
    names: list[str]  # of the functions that use it


class Builds:
    """The images that a program needs, worked out, each different one once.

    `built` has what became of them, by the id of the `Image` object.
    """

    def __init__(self, resolution: Resolution) -> None:
        self._resolution = resolution
        self._wanted: dict[bytes, _Wanted] = {}
        self._known: dict[int, _Wanted] = {}
        self.built: dict[int, BuiltImage] = {}

    def add(self, image: Image, name: str = "") -> None:
        """Wants an image, for the function of that name. Raises InvalidError for what is wrong with local files."""
        wanted = self._known.get(id(image))
        if wanted is None:
            spec = image.resolve(self._resolution)
            if spec is None:
                return
            encoded = encode(spec)
            wanted = self._wanted.setdefault(encoded, _Wanted(encoded, [], []))
            wanted.images.append(image)
            self._known[id(image)] = wanted
        if name:
            wanted.names.append(name)

    def run(self, client: clients.Client) -> None:
        """Builds them all at the same time. Raises the first error, ImageBuildError or another, and ends the others."""
        self._resolution.trees.bring_to(client)
        running = _Running(client, self._requests())
        try:
            while not running.finished():
                client.connection.wait(running.waiter)
        finally:
            running.close()
        self._take(running.results())

    async def run_async(self, client: clients.Client) -> None:
        """`run`, awaited."""
        import asyncio

        await asyncio.to_thread(self._resolution.trees.bring_to, client)
        running = _Running(client, self._requests())
        try:
            while not running.finished():
                await client.connection.wait_async(running.waiter)
        finally:
            running.close()
        self._take(running.results())

    def _requests(self) -> list[_Request]:
        alone = len(self._wanted) == 1
        found = program_settings()
        return [
            _Request(
                wanted.encoded,
                self._resolution.secrets,
                "" if alone else _label(wanted.names),
                found.registry,
                found.insecure_registries,
            )
            for wanted in self._wanted.values()
        ]

    def _take(self, results: list[BuiltImage]) -> None:
        for wanted, built in zip(self._wanted.values(), results, strict=True):
            for image in wanted.images:
                image.built(built.image_id)
                self.built[id(image)] = built


class _Request(NamedTuple):
    """One build as it is asked for; `label` names the image for people."""

    encoded: bytes
    secrets: dict[str, str]
    label: str
    registry: str
    insecure_registries: tuple[str, ...]

    def message(self, seq: int, encoded: bytes, fds: int) -> BuildImage:
        """As the server is told; `encoded` may be empty, and travel as a file."""
        return BuildImage(
            seq,
            encoded,
            self.secrets,
            descriptors=fds,
            registry=self.registry,
            insecure_registries=self.insecure_registries,
        )


class _Progress:
    """What the server says of one build, handed on to whoever listens."""

    def __init__(self, label: str, waiter: Waiter) -> None:
        self._label = label
        self._waiter = waiter
        self.answer: Any = None

    def receive(self, message: Any, fds: tuple[int, ...]) -> None:
        descriptors.close_all(fds)
        if isinstance(message, BuildEvent):
            output.emit(
                events.BuildStep(
                    image=self._label,
                    step=message.step,
                    steps=message.steps,
                    title=message.title,
                    state=message.state,
                    text=message.text,
                    progress=message.progress,
                    seconds=message.seconds,
                    key=message.key,
                )
            )
            return
        self.answer = message
        output.emit(events.BuildEnd(self._label, isinstance(message, messages.Done)))
        self._waiter.set()

    def lose(self, error: errors.ConnectionLostError) -> None:
        self.answer = error
        self._waiter.set()


class _Running:
    """Builds that have been asked for and are not all answered."""

    def __init__(self, client: clients.Client, requests: Iterable[_Request]) -> None:
        self.waiter = Waiter()
        self._client = client
        self._builds: dict[int, _Progress] = {}
        try:
            for request in requests:
                self._begin(request)
        except BaseException:
            self.close()
            raise

    def _begin(self, request: _Request) -> None:
        progress = _Progress(request.label, self.waiter)
        encoded, fds = request.encoded, ()
        if len(encoded) > INLINE_LIMIT:
            encoded, fds = b"", (to_memory(encoded),)
        try:
            seq = self._client.begin(lambda seq: request.message(seq, encoded, len(fds)), fds, progress)
        finally:
            descriptors.close_all(fds)
        self._builds[seq] = progress

    def finished(self) -> bool:
        """Whether all are answered, or one has failed; else readies the waiter for the next answer."""
        self.waiter.clear()
        answers = [progress.answer for progress in self._builds.values()]
        return all(isinstance(answer, messages.Done) for answer in answers) or any(
            answer is not None and not isinstance(answer, messages.Done) for answer in answers
        )

    def results(self) -> list[BuiltImage]:
        """What was built, in order. Raises the error of one that failed."""
        failed = [one.answer for one in self._builds.values() if isinstance(one.answer, messages.Failed)]
        answers = failed or [one.answer for one in self._builds.values()]
        return [msgspec.msgpack.decode(clients.checked(answer).body, type=BuiltImage) for answer in answers]

    def close(self) -> None:
        """Ends those that are still on their way."""
        for seq, progress in self._builds.items():
            self._client.end(seq)
            if progress.answer is None:
                try:
                    self._client.connection.send(CancelBuild(0, seq))
                except ConnectionError:
                    pass  # with the connection they end, too


def build(image: Image) -> Image:
    """Builds one image, unless it is the host's."""
    _check_place()
    with LocalTrees() as trees:
        if (builds := _of_one(image, trees)) is not None:
            builds.run(clients.current())
    return image


async def build_async(image: Image) -> Image:
    """`build`, awaited."""
    _check_place()
    with LocalTrees() as trees:
        if (builds := _of_one(image, trees)) is not None:
            await builds.run_async(clients.current())
    return image


def publish(image: Image, name: str) -> None:
    """Builds an image and gives it a name."""
    make = _publishing(build(image), name)
    clients.current().request(make)


async def publish_async(image: Image, name: str) -> None:
    """`publish`, awaited."""
    make = _publishing(await build_async(image), name)
    await clients.current().request_async(make)


def _check_place() -> None:
    """Images are built by the program that declares them: what they copy is on its machine."""
    from farcall.sdk import context, local

    local.only_with_server("image.build")
    if not context.is_local():
        raise errors.InvalidError("image.build() is for the program that runs the app, not for its containers")


def _publishing(image: Image, name: str) -> Callable[[int], PublishImage]:
    image_id = image.object_id
    if image_id is None:
        raise errors.InvalidError("image.publish: Image.host() is not built and cannot have a name")
    return lambda seq: PublishImage(seq, image_id, name)


def _of_one(image: Image, trees: LocalTrees) -> Builds | None:
    if image.unimplemented:
        from farcall.sdk.unimplemented import refuse

        refuse(", ".join(image.unimplemented))
    if image.is_host:
        return None
    builds = Builds(Resolution(trees))
    builds.add(image)
    return builds


def _label(names: list[str]) -> str:
    shown = ", ".join(names[:_LABEL_NAMES])
    return f"{shown} and {len(names) - _LABEL_NAMES} more" if len(names) > _LABEL_NAMES else shown
