"""What the server asks of jobs, by standard input, and what they say, on standard output, a line for each word."""

from __future__ import annotations

from typing import Any

import msgspec

from farcall.spec.image import Copy, Download, ImageConfig


class _Request(msgspec.Struct, frozen=True):
    """Base of all requests. `store` is the folder of the content store, `lease` the lease that keeps what is made;
    `launcher` is the pid of the launcher where the job is to be where that is, else 0."""

    store: str
    lease: str
    launcher: int


class Bootstrap(_Request, frozen=True, tag=True):
    """Make the Debian that images begin with. Result: the tree's id."""


class Pull(_Request, frozen=True, tag=True):
    """Fetch an image from a registry. `credentials` are those that a Secret would have, or empty. Result: State."""

    reference: str
    credentials: dict[str, str] = {}
    registry: str = "docker.io"  # what stands in for it
    insecure: tuple[str, ...] = ()  # registries that may be asked over http


class AddPython(_Request, frozen=True, tag=True):
    """Put an interpreter of this machine, or one that uv fetches, over a tree. Result: AddedPython."""

    base: str
    version: str
    own: str  # the version that the base has itself, "" for none; for the error
    downloads: str  # the folder in which fetched interpreters stay


class Commit(_Request, frozen=True, tag=True):
    """Take what a step's container wrote over a tree. Result: the new tree's id.

    Files may be moved out of `upper`. With `clamp` files that it made get one fixed time, so that what was installed
    twice is the same twice.
    """

    base: str
    upper: str
    clamp: bool = False


class CopyTree(_Request, frozen=True, tag=True):
    """COPY: put what the sources name over a tree. Result: the new tree's id.

    `step` has no variables any more. `source` is the tree that is copied from.
    """

    base: str
    source: str
    step: Copy
    workdir: str
    keep_owner: bool = False  # where `step.owner` is "": the files keep theirs, else they are root's


class Fetch(_Request, frozen=True, tag=True):
    """ADD of a URL: put what it gives over a tree. Result: the new tree's id."""

    base: str
    step: Download
    workdir: str


class FetchTrees(_Request, frozen=True, tag=True):
    """Fetch trees from the tier at `place`. Result: nothing."""

    place: str
    endpoint: str
    trees: tuple[str, ...]


class Push(_Request, frozen=True, tag=True):
    """Put what was built into the tier at `place`, for other machines. Result: how many records were put there."""

    place: str
    endpoint: str


class Remove(_Request, frozen=True, tag=True):
    """Remove a folder with all that is in it, whoever it belongs to. Result: whether nothing is left."""

    folder: str


class Tidy(_Request, frozen=True, tag=True):
    """See what was built onto the disk, and what nobody has used for long off it. Result: bytes that were freed."""


class State(msgspec.Struct, frozen=True):
    """An image so far: its file system, what its configuration says, and the path of its Python, "" where it has none
    or nobody has looked yet."""

    tree: str
    config: ImageConfig = ImageConfig()
    python: str = ""


class AddedPython(msgspec.Struct, frozen=True):
    """The tree, and the interpreter's executable and version in it."""

    tree: str
    executable: str
    version: str


Request = Bootstrap | Pull | AddPython | Commit | CopyTree | Fetch | FetchTrees | Push | Remove | Tidy


class Said(msgspec.Struct, tag=True):
    """A line for whoever waits for the build."""

    text: str


class Failed(msgspec.Struct, tag=True):
    """The job's error; `code` is one of farcall.errors."""

    code: str
    message: str


class Finished(msgspec.Struct, tag=True):
    """The job's result."""

    result: Any


encode = msgspec.msgpack.encode
decode_request = msgspec.msgpack.Decoder(Request).decode
encode_word = msgspec.json.encode
decode_word = msgspec.json.Decoder(Said | Failed | Finished).decode
