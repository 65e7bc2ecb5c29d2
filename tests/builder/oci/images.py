"""Images that the tests make themselves: layers from members, manifests, OCI layouts that skopeo reads."""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from farcall.builder.oci import manifest as formats
from farcall.builder.oci.platform import this_machine

TIME = 1_600_000_000


class Document(NamedTuple):
    """A manifest or an index."""

    data: bytes
    media_type: str

    @property
    def digest(self) -> str:
        return digest_of(self.data)


@dataclass
class MadeImage:
    """An image: its blobs by digest, and its documents, what its tag names last."""

    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    documents: list[Document] = field(default_factory=list[Document])

    @property
    def digest(self) -> str:
        return self.documents[-1].digest


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a layer: a regular file, unless `fields` (those of TarInfo) say another `type`."""
    made = tarfile.TarInfo(name)
    made.size, made.mtime, made.mode = len(content), TIME, 0o644
    for key, value in fields.items():
        setattr(made, key, value)
    return made, content


def folder(name: str, mode: int = 0o755, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, mode=mode, **fields)


def link(name: str, target: str, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """A hard link."""
    return member(name, type=tarfile.LNKTYPE, linkname=target, **fields)


def symlink(name: str, target: str, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777, **fields)


def layer(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A layer, not compressed."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def packed(data: bytes, compression: str) -> bytes:
    """A layer compressed with "gzip", "zstd" or, with "", not at all."""
    if compression == "gzip":
        return gzip.compress(data, 1, mtime=0)
    if compression == "zstd":
        return subprocess.run(["zstd", "-q", "-1", "-c"], input=data, capture_output=True, check=True).stdout
    return data


def make_image(
    layers: Sequence[bytes],
    *,
    config: dict[str, object] | None = None,
    compression: str = "gzip",
    docker: bool = False,
    architecture: str | None = None,
    diff_ids: Sequence[str] | None = None,
    layer_type: str | None = None,
) -> MadeImage:
    """An image of these layers, in OCI's format or Docker's."""
    image = MadeImage()
    machine = this_machine()
    document = {
        "os": "linux",
        "architecture": architecture or machine.architecture,
        **({"variant": machine.variant} if machine.variant and not architecture else {}),
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids or map(digest_of, layers))},
    }
    base = formats.DOCKER_LAYER if docker else formats.OCI_LAYER
    suffix = ("." if docker else "+") + compression if compression else ""
    manifest = {
        "schemaVersion": 2,
        "mediaType": formats.DOCKER_MANIFEST if docker else formats.OCI_MANIFEST,
        "config": _add(image, json.dumps(document).encode(), formats.DOCKER_CONFIG if docker else formats.OCI_CONFIG),
        "layers": [_add(image, packed(data, compression), layer_type or base + suffix) for data in layers],
    }
    image.documents.append(Document(json.dumps(manifest).encode(), str(manifest["mediaType"])))
    return image


def make_index(images: dict[str, MadeImage], *, docker: bool = False) -> MadeImage:
    """An index (Docker: a manifest list) of images by platform, "linux/arm64/v8"."""
    made = MadeImage()
    entries: list[dict[str, object]] = []
    for platform, image in images.items():
        made.blobs |= image.blobs
        made.documents += image.documents
        document = image.documents[-1]
        words = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
        entries.append(
            {
                "mediaType": document.media_type,
                "digest": document.digest,
                "size": len(document.data),
                **({"platform": words} if platform else {}),
            }
        )
    kind = formats.DOCKER_LIST if docker else formats.OCI_INDEX
    made.documents.append(
        Document(json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).encode(), kind)
    )
    return made


def write_layout(image: MadeImage, path: Path, tag: str = "latest") -> None:
    """The image as an OCI layout, a directory that skopeo reads as `oci:PATH:TAG`."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for digest, data in image.blobs.items() | {(one.digest, one.data) for one in image.documents}:
        (blobs / digest.partition(":")[2]).write_bytes(data)
    top = image.documents[-1]
    entry = {
        "mediaType": top.media_type,
        "digest": top.digest,
        "size": len(top.data),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def _add(image: MadeImage, data: bytes, media_type: str) -> dict[str, object]:
    image.blobs[digest_of(data)] = data
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
