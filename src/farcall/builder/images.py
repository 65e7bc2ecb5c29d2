"""Images that are built, as the content store remembers them."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import msgspec

from farcall.content.store import Store
from farcall.errors import NotFoundError
from farcall.interpreters import Details
from farcall.spec.image import ImageConfig, split_name

IMAGES, NAMES, STEPS, PYTHONS = "images", "image-names", "image-steps", "image-pythons"  # kinds of records


class Python(msgspec.Struct, frozen=True):
    """The Python of an image; the fields are those of `farcall.interpreters.Details`."""

    executable: str
    version: str
    tag: str
    soabi: str
    prefix: str
    sys_path: tuple[str, ...]

    def details(self) -> Details:
        """As the modules that make runner directories know it."""
        return Details(self.executable, self.version, self.tag, (), (), self.soabi, self.prefix, self.sys_path)


class Image(msgspec.Struct, frozen=True):
    """A built image. `tree` is what its steps made, and what further steps begin with; `root` what containers see: the
    same, with bytecode once that has been compiled. `python` is None where it has none that can run functions, and
    where nobody has looked yet: an image that was not built here, and has not been used."""

    image_id: str
    tree: str
    root: str
    config: ImageConfig
    python: Python | None
    compiled: bool = False  # whether `root` has the bytecode of all that is installed
    probed: bool = True  # whether its Python has been looked for


class Listed(NamedTuple):
    """An image, the names it was published under, and when it was last used (seconds since the epoch)."""

    image: Image
    names: tuple[str, ...]
    used: float


def image_id(tree: str, config: ImageConfig) -> str:
    """An image's id: it is the same for the same files and configuration, however they were made."""
    digest = hashlib.sha256(tree.encode() + msgspec.msgpack.encode(config, order="sorted"))
    return f"im-{digest.hexdigest()[:24]}"


class Images:
    """The images of one content store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, reference: str) -> Image:
        """The image of that id, or of the name ("name" or "name:tag") it was published under. Raises NotFoundError."""
        if not reference.startswith("im-"):
            record = self._store.record(NAMES, name_key(reference))
            if record is None:
                known = sorted(one.data["name"] for one in self._store.records(NAMES))
                raise NotFoundError(
                    f"there is no image named {reference!r}; known: {', '.join(known) or 'none'}. "
                    "Image.publish gives an image a name"
                )
            # What has a name stays; what else was known of the image may have made room.
            return self.add(record.data["tree"], msgspec.convert(record.data["config"], ImageConfig))
        record = self._store.record(IMAGES, reference)
        if record is None:
            raise NotFoundError(
                f"there is no image {reference} here (any more): images that were not used for long make room for "
                "others. Build it again"
            )
        return msgspec.convert(record.data, Image)

    def find(self, image_id: str) -> Image | None:
        """As `get`, None where there is none."""
        record = self._store.record(IMAGES, image_id)
        return None if record is None else msgspec.convert(record.data, Image)

    def put(self, image: Image) -> None:
        """Remember an image, while a lease still keeps its trees."""
        data: dict[str, Any] = msgspec.to_builtins(image)
        self._store.put_record(IMAGES, image.image_id, trees=dict.fromkeys((image.tree, image.root)), data=data)

    def add(self, tree: str, config: ImageConfig) -> Image:
        """Remember an image that was not built here, while a lease still keeps its tree."""
        name = image_id(tree, config)
        image = self.find(name)
        if image is None:
            image = Image(name, tree, tree, config, python=None, probed=False)
            self.put(image)
        return image

    def publish(self, image_id: str, name: str) -> None:
        """Give an image a name, in place of another image that has it. Raises NotFoundError, InvalidError."""
        image = self.get(image_id)
        key = name_key(name)
        config: dict[str, Any] = msgspec.to_builtins(image.config)
        data = {"name": ":".join(split_name(name)), "image_id": image.image_id, "tree": image.tree, "config": config}
        self._store.put_record(NAMES, key, trees=(image.tree,), data=data, pinned=True)

    def all(self) -> list[Listed]:
        """All images, least recently used first."""
        names: dict[str, list[str]] = {}
        for name, image_id in sorted(self.names().items()):
            names.setdefault(image_id, []).append(name)
        return [
            Listed(msgspec.convert(record.data, Image), tuple(names.get(record.key, ())), record.used)
            for record in self._store.records(IMAGES)
        ]

    def names(self) -> dict[str, str]:
        """Image ids by the names they were published under."""
        return {record.data["name"]: record.data["image_id"] for record in self._store.records(NAMES)}

    def remove(self, reference: str) -> None:
        """Forget an image and the names it has, or only the name where `reference` is one. Raises NotFoundError."""
        image = self.get(reference)
        for name, owner in self.names().items():
            if (owner == image.image_id and reference.startswith("im-")) or name == ":".join(split_name(reference)):
                self._store.delete_record(NAMES, name_key(name))
        if reference.startswith("im-"):
            self._store.delete_record(IMAGES, image.image_id)


def name_key(name: str) -> str:
    """A name as the key of a record, which cannot have every letter."""
    return hashlib.sha256(":".join(split_name(name)).encode()).hexdigest()
