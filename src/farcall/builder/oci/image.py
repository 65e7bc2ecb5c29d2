"""What an image consists of, wherever it is kept: from a name, through indexes, to one manifest."""

from typing import NamedTuple, Protocol

from farcall.builder.oci import manifest as formats
from farcall.builder.oci.manifest import Configuration, Descriptor, Index, Manifest
from farcall.builder.oci.platform import Platform, choose
from farcall.errors import ContentError
from farcall.spec.image import ImageConfig

_MAX_DEPTH = 3  # of indexes in indexes


class Document(NamedTuple):
    """A manifest or an index, verified against its digest."""

    data: bytes
    media_type: str
    digest: str


class Source(Protocol):
    """Where an image is kept."""

    @property
    def name(self) -> str:
        """The image's, for messages."""
        ...

    def document(self, version: str) -> Document:
        """The manifest or index of a tag or digest."""
        ...

    def small_blob(self, digest: str, size: int) -> bytes:
        """A blob that is held in memory, verified."""
        ...


class Image(NamedTuple):
    """One image, complete but for the bytes of its layers. `digest` is its manifest's."""

    digest: str
    layers: tuple[Descriptor, ...]
    configuration: Configuration


class Pulled(NamedTuple):
    """What an image is here: the tree of its files, its configuration, and its manifest's digest where it came from."""

    tree_id: str
    config: ImageConfig
    digest: str


def find(source: Source, version: str, platform: Platform) -> Image:
    """The image that a tag or digest names, or the one for `platform` where it names several.

    Raises NotFoundError that lists the platforms there are, UnimplementedError for a form that cannot be used,
    ContentError for what is no image.
    """
    for _ in range(_MAX_DEPTH):
        document = source.document(version)
        found = formats.read_document(document.data, source.name, document.media_type)
        if isinstance(found, Manifest):
            data = source.small_blob(found.config.digest, found.config.size)
            configuration = formats.read_configuration(data, len(found.layers), source.name)
            check_platform(configuration, platform, source.name)
            return Image(document.digest, found.layers, configuration)
        version = select(found, platform, source.name).digest
    raise ContentError(f"{source.name} is an index of indexes, {_MAX_DEPTH} deep, and is refused")


def select(index: Index, platform: Platform, name: str) -> Descriptor:
    """The image of an index that is for `platform`. NotFoundError lists those that there are."""
    images = [one for one in index.manifests if one.media_type in formats.ACCEPTED]
    if len(images) == 1 and not images[0].named_platform.os:
        return images[0]  # its configuration has to say
    return images[choose(platform, [one.named_platform for one in images], name)]


def check_platform(configuration: Configuration, platform: Platform, name: str) -> None:
    """Raises NotFoundError where an image says that it is for another platform."""
    if configuration.platform.architecture:
        choose(platform, [configuration.platform], name)
