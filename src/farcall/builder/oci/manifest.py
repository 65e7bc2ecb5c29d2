"""The JSON of the OCI image format and of Docker's before it: manifests, indexes, configurations.

https://github.com/opencontainers/image-spec; Docker's "Image Manifest Version 2, Schema 2" has the same fields.
"""

from typing import Any, NamedTuple

import msgspec

from farcall.builder.oci.platform import Platform
from farcall.builder.oci.reference import is_digest
from farcall.errors import ContentError, UnimplementedError
from farcall.spec.image import ImageConfig

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

_SCHEMA_1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
INDEXES = (OCI_INDEX, DOCKER_LIST)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
ACCEPTED = (*MANIFESTS, *INDEXES)
_LAYERS = tuple(
    base + suffix for base in (OCI_LAYER, DOCKER_LAYER) for suffix in ("", "+gzip", ".gzip", "+zstd", ".zstd")
)
_MAX_LAYERS = 1024

MAX_DOCUMENT_BYTES = 8 * 2**20  # of manifests and configurations, which are held in memory; registries allow 4 MiB


class _PlatformFields(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str | None = None


class Descriptor(msgspec.Struct, rename="camel", frozen=True):
    """What an image consists of, by digest ("sha256:<hex>") and size in bytes."""

    digest: str
    size: int
    media_type: str = ""
    platform: _PlatformFields | None = None
    annotations: dict[str, str] | None = None

    @property
    def named_platform(self) -> Platform:
        """The platform it says it is for; empty strings where it says nothing."""
        found = self.platform or _PlatformFields()
        return Platform(found.os, found.architecture, found.variant or "")


class Index(NamedTuple):
    """A list of manifests, for platforms or of names."""

    manifests: tuple[Descriptor, ...]


class Manifest(NamedTuple):
    """One image: its configuration, and its layers, the lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


class Configuration(NamedTuple):
    """What an image's configuration says: its platform, the digests of its uncompressed layers, and how it is run."""

    platform: Platform
    diff_ids: tuple[str, ...]
    config: ImageConfig


class _Document(msgspec.Struct, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] | None = None
    manifests: tuple[Descriptor, ...] | None = None


class _Run(msgspec.Struct, rename="pascal"):
    """The part of a configuration that says how the image is run. What Go writes for an empty list is null."""

    env: list[str] | None = None
    working_dir: str | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    shell: tuple[str, ...] | None = None
    user: str | None = None
    labels: dict[str, str] | None = None


class _RootFileSystem(msgspec.Struct):
    diff_ids: tuple[str, ...] | None = ()


class _ConfigurationFields(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str | None = None
    config: _Run | None = None
    rootfs: _RootFileSystem | None = None


def read_document(data: bytes, name: str, media_type: str = "") -> Index | Manifest:
    """A manifest or an index. `media_type` is what it came with; what stands in it counts more.

    Raises ContentError for what is none, UnimplementedError for an image in a form that cannot be used; both call it
    `name`.
    """
    document = _decoded(data, _Document, name)
    kind = document.media_type or media_type.partition(";")[0].strip()
    if kind in _SCHEMA_1 or document.schema_version == 1:
        raise UnimplementedError(
            f"{name} is in Docker's first image format (schema 1), which has been out of use since 2017. "
            "Push it again with a current docker, podman or skopeo"
        )
    # A document that is both would be a different image to different readers (CVE-2021-41190).
    if document.manifests is not None and (document.layers is not None or document.config is not None):
        raise ContentError(f"{name} is both an image and an index of images, and is refused")
    if document.manifests is not None and kind not in MANIFESTS:
        _check(document.manifests, name)
        return Index(document.manifests)
    if document.config is None or document.layers is None or kind in INDEXES:
        raise ContentError(
            f"{name} is no manifest of an image: it lacks config or layers (its type is {kind or 'unknown'})"
        )
    _check((document.config, *document.layers), name)
    if document.config.media_type not in (OCI_CONFIG, DOCKER_CONFIG):
        raise ContentError(
            f"{name} is no image of a container: its configuration is {document.config.media_type or 'untyped'}"
        )
    if len(document.layers) > _MAX_LAYERS:
        raise ContentError(f"{name} has {len(document.layers):,} layers, more than {_MAX_LAYERS:,}")
    for layer in document.layers:
        if "foreign" in layer.media_type or "nondistributable" in layer.media_type:
            raise UnimplementedError(
                f"{name} has a layer that may not be distributed and is not in the registry ({layer.media_type}): "
                "an image of Windows, as a rule. Choose an image without such layers"
            )
        if layer.media_type not in _LAYERS:
            raise UnimplementedError(
                f"{name} has a layer of a type that farcall cannot read: {layer.media_type or 'none'}. "
                "It reads tar layers, uncompressed or compressed with gzip or zstd"
            )
    return Manifest(document.config, document.layers)


def read_configuration(data: bytes, layers: int, name: str) -> Configuration:
    """The configuration of an image with so many layers. Raises ContentError where it is none, or of another number."""
    found = _decoded(data, _ConfigurationFields, f"the configuration of {name}")
    diff_ids = (found.rootfs and found.rootfs.diff_ids) or ()
    if len(diff_ids) != layers or not all(map(is_digest, diff_ids)):
        raise ContentError(
            f"the configuration of {name} has digests for {len(diff_ids)} layers, its manifest has {layers}: the image "
            "is damaged"
        )
    run = found.config or _Run()
    env = dict(variable.split("=", 1) for variable in run.env or () if "=" in variable)
    default = ImageConfig()
    config = ImageConfig(
        env=env,
        # The default's own objects where it is the same: only these count as defaults when it is encoded.
        workdir=default.workdir if run.working_dir in (None, "", default.workdir) else run.working_dir,
        entrypoint=run.entrypoint or (),
        cmd=run.cmd or (),
        shell=default.shell if run.shell in (None, (), default.shell) else run.shell,
        user=run.user or "",
        labels=run.labels or {},
    )
    return Configuration(Platform(found.os, found.architecture, found.variant or ""), diff_ids, config)


def write_configuration(config: ImageConfig, platform: Platform, diff_ids: tuple[str, ...]) -> bytes:
    """The inverse of `read_configuration`; the same bytes for the same arguments."""
    run = {
        "Env": [f"{name}={value}" for name, value in config.env.items()],
        "WorkingDir": config.workdir,
        "Entrypoint": config.entrypoint,
        "Cmd": config.cmd,
        "User": config.user,
        "Labels": dict(sorted(config.labels.items())),
    }
    if config.shell != ImageConfig().shell:
        run["Shell"] = config.shell
    return msgspec.json.encode(
        {
            "created": CREATED,
            "architecture": platform.architecture,
            "os": platform.os,
            **({"variant": platform.variant} if platform.variant else {}),
            "config": {name: value for name, value in run.items() if value},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created": CREATED, "created_by": "farcall image export"} for _ in diff_ids],
        }
    )


CREATED = "1970-01-01T00:00:00Z"  # the same image exported twice is the same file


def _check(descriptors: tuple[Descriptor, ...], name: str) -> None:
    for descriptor in descriptors:
        if not is_digest(descriptor.digest):
            raise ContentError(f"{name} refers to {descriptor.digest!r}, which is no digest (sha256 or sha512)")
        if descriptor.size < 0:
            raise ContentError(f"{name} refers to {descriptor.digest} of {descriptor.size} bytes")


def _decoded(data: bytes, kind: type[Any], name: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ContentError(f"{name} cannot be read: {error}") from error
