"""Images as OCI archives: one tar file that skopeo and podman read.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

import hashlib
import os
import secrets
import tarfile
from pathlib import Path
from typing import BinaryIO

import msgspec

from farcall.builder.oci import manifest as formats
from farcall.builder.oci.layer import write_layer
from farcall.builder.oci.platform import Platform, this_machine
from farcall.content import Store
from farcall.content.disk import disk_error
from farcall.spec.image import ImageConfig

LAYOUT_FILE, INDEX_FILE = "oci-layout", "index.json"
LAYOUT_VERSION = "1.0.0"
NAME_ANNOTATION = "org.opencontainers.image.ref.name"
_BLOCK = 512
_RECORD = 20 * _BLOCK


def export_archive(
    store: Store,
    tree_id: str,
    config: ImageConfig,
    file: Path,
    *,
    name: str = "",
    platform: Platform | None = None,
) -> str:
    """Write the image to `file`, which appears, or is replaced, when it is whole. Returns the manifest's digest.

    The image has one layer, uncompressed. The same image makes the same file. `name` is what the archive says it is
    called. Raises what `write_layer` does, and what `disk_error` says of `file`.
    """
    tree = store.tree(tree_id)
    try:
        made = file.with_name(f".{file.name[:200]}.{secrets.token_hex(8)}")
        with open(made, "x+b") as target:
            try:
                # Without these, skopeo makes them itself and gives them to root, which only root can do.
                target.write(_directory("blobs") + _directory("blobs/sha256"))
                layer = _Blob(target)
                write_layer(store, tree, layer)
                layer.close()
                digest = _describe(target, layer, config, platform or this_machine(), name)
                target.flush()
                os.rename(made, file)
            except BaseException:
                os.unlink(made)
                raise
    except OSError as error:
        raise disk_error(error, "writing", file) from error
    return digest


class _Blob:
    """A member of the archive whose name is the digest of what is written to it, and so comes last."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._hasher = hashlib.sha256()
        self._start = target.tell()
        self.size = 0
        target.write(bytes(_BLOCK))

    def write(self, data: bytes) -> None:
        self._target.write(data)
        self._hasher.update(data)
        self.size += len(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hasher.hexdigest()}"

    def close(self) -> None:
        """Pads it, and goes back to write its header."""
        self._target.write(bytes(-self.size % _BLOCK))
        end = self._target.tell()
        self._target.seek(self._start)
        self._target.write(_header(f"blobs/sha256/{self._hasher.hexdigest()}", self.size))
        self._target.seek(end)


def _describe(target: BinaryIO, layer: _Blob, config: ImageConfig, platform: Platform, name: str) -> str:
    """Writes all of the archive that stands behind the layer."""
    configured = _blob(target, formats.write_configuration(config, platform, (layer.digest,)))
    manifest = {
        "schemaVersion": 2,
        "mediaType": formats.OCI_MANIFEST,
        "config": {"mediaType": formats.OCI_CONFIG, "digest": configured.digest, "size": configured.size},
        "layers": [{"mediaType": formats.OCI_LAYER, "digest": layer.digest, "size": layer.size}],
    }
    described = _blob(target, msgspec.json.encode(manifest))
    entry = {
        "mediaType": formats.OCI_MANIFEST,
        "digest": described.digest,
        "size": described.size,
        **({"annotations": {NAME_ANNOTATION: name}} if name else {}),
        "platform": {key: value for key, value in platform._asdict().items() if value},
    }
    index = {"schemaVersion": 2, "mediaType": formats.OCI_INDEX, "manifests": [entry]}
    for path, document in ((LAYOUT_FILE, {"imageLayoutVersion": LAYOUT_VERSION}), (INDEX_FILE, index)):
        data = msgspec.json.encode(document)
        target.write(_header(path, len(data)) + data + bytes(-len(data) % _BLOCK))
    target.write(bytes(2 * _BLOCK))
    target.write(bytes(-target.tell() % _RECORD))
    return described.digest


def _blob(target: BinaryIO, data: bytes) -> _Blob:
    blob = _Blob(target)
    blob.write(data)
    blob.close()
    return blob


def _directory(name: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info.tobuf(tarfile.GNU_FORMAT)


def _header(name: str, size: int) -> bytes:
    """One block, also for sizes above 8 GiB: in GNU's format these need no second one."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)
