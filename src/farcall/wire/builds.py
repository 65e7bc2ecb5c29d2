"""Messages about images: that one is to be built, how that goes on, and the name it gets."""

from typing import Literal

import msgspec

from farcall.spec.image import ImageConfig
from farcall.wire.message import DescriptorCount, Message


class BuildImage(Message, tag=22):
    """Build an image, or find it built. Answer: BuildEvent messages, then Done, body a BuiltImage.

    `image` is a msgpack-encoded ImageSpec; where `descriptors` is 1 it is b"" and rides along as a memory file.
    `secrets` are the values by the handles that the image uses. With `force` no step is taken from the cache.
    `registry` and `insecure_registries` are the program's settings of these names.
    The build ends with the connection, or by CancelBuild, unless somebody else waits for the same steps.
    """

    seq: int
    image: bytes
    secrets: dict[str, str] = {}
    force: bool = False
    descriptors: DescriptorCount = 0
    registry: str = "docker.io"
    insecure_registries: tuple[str, ...] = ()


class CancelBuild(Message, tag=23):
    """Nobody waits for the BuildImage of number `build` any more: it is answered Failed, or not at all. Answer, where
    seq is not 0: Done."""

    seq: int
    build: int


class PublishImage(Message, tag=24):
    """Give an image a name ("name" or "name:tag"), by which BuiltBase finds it; another image of that name loses it.
    Answer: Done."""

    seq: int
    image_id: str
    name: str


class BuildEvent(Message, tag=36):
    """How the BuildImage of that `seq` goes on: a step has come to another state, is further on, or has printed `text`
    (whole lines, at most 64 KiB). A step is "queued" also while it waits for the same step of another build."""

    seq: int
    step: int  # from 1
    steps: int
    title: str
    state: Literal["queued", "cached", "running", "done", "failed"]
    text: str = ""
    progress: str = ""  # for people, to be overwritten by the next: "120 of 340 MiB"
    seconds: float = 0.0  # since it began to run
    key: str = ""  # the same for the same step of two images


class BuiltImage(msgspec.Struct):
    """Body of the answer to BuildImage. `python` is the version of the image's Python, "" where it has none."""

    image_id: str
    config: ImageConfig
    python: str = ""  # "3.12.4"
