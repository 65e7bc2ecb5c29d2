"""What an `Image` has noted, and how it is worked out for the server when it is needed.

A part of an image is a function from the description so far to a longer one. It runs when an app starts, not when the
image is declared: what is on the user's disk is read then, and of a module that declares twenty images and runs one
only that one's files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from farcall.sdk.image_options import Ignore
    from farcall.sdk.local_trees import LocalTrees
    from farcall.sdk.secret import Secret
    from farcall.spec.image import Base, ImageSpec, Step


class LocalFiles(NamedTuple):
    """A local file or folder that a container sees at `target`, mounted when it starts. With `is_source` a folder is
    without what no program reads of its source, such as .git."""

    source: str
    target: str
    ignore: Ignore = ()
    is_source: bool = False


class LocalModules(NamedTuple):
    """Local modules, mounted at their own paths when a container starts."""

    names: tuple[str, ...]
    ignore: Ignore = ()


class Resolution:
    """What is at hand while images are worked out: trees of local files, and the values of secrets.

    `secrets` are values by handle. Equal values have one handle, so that equal images have equal descriptions.
    """

    def __init__(self, trees: LocalTrees, *, compat: bool = False) -> None:
        self.trees = trees
        self.compat = compat
        self.secrets: dict[str, str] = {}
        self._handles: dict[str, str] = {}

    def handle(self, value: str) -> str:
        """The handle of a secret value."""
        handle = self._handles.setdefault(value, f"s{len(self._handles) + 1}")
        self.secrets[handle] = value
        return handle

    def handles(self, secrets: Collection[Secret]) -> dict[str, str]:
        """The handles of all variables of some secrets; of two that have the same name the later one counts. Those of
        stored secrets are asked for."""
        from farcall.sdk.secret import values_of

        values: dict[str, str] = {}
        for secret in secrets:
            values |= values_of(secret)
        return {name: self.handle(value) for name, value in values.items()}


Start = Callable[[Resolution], "ImageSpec"]
Part = Callable[["ImageSpec", Resolution], "ImageSpec"]


def starting(base: Callable[[Resolution], Base]) -> Start:
    """The start of an image that has nothing but a base."""

    def start(resolution: Resolution) -> ImageSpec:
        from farcall.spec.image import ImageSpec

        return ImageSpec(base(resolution))

    return start


def adding(*makes: Callable[[Resolution], Step]) -> Part:
    """The part that adds steps."""

    def add(before: ImageSpec, resolution: Resolution) -> ImageSpec:
        from farcall.spec.image import ImageSpec

        return ImageSpec(before.base, (*before.steps, *(make(resolution) for make in makes)))

    return add
