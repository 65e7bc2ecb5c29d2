"""Messages about volumes. A container may send those about the files of volumes that its app mounts."""

from typing import Annotated

import msgspec

from farcall.wire.message import Message


class CreateVolume(Message, tag=140):
    """Make an empty volume, or with `allow_existing` find it. An `ephemeral` one is deleted when this connection ends.
    Answer: Done, body a VolumeReport."""

    seq: int
    name: str
    allow_existing: bool = False
    ephemeral: bool = False


class ListVolumes(Message, tag=141):
    """Ask for all volumes. Answer: Done, body a list of VolumeReport, oldest first."""

    seq: int


class DeleteVolume(Message, tag=142):
    """Delete a volume, for good. Answer: Done."""

    seq: int
    name: str


class RenameVolume(Message, tag=143):
    """Give a volume another name. Answer: Done."""

    seq: int
    name: str
    new_name: str


class GetVolume(Message, tag=144):
    """Ask for the files of a volume's newest version; this connection may read them from then on, until it has asked
    for some later ones. Unless that version is `known`: then there are no entries. With `version` that one is meant,
    which a container has started with, or this connection has been shown. Answer: Done, body a VolumeVersion."""

    seq: int
    name: str
    known: str = ""
    version: str = ""


class ReadVolume(Message, tag=145):
    """Read up to `size` bytes from `offset` of a file that GetVolume has shown. Answer: Done, whose body is
    the bytes."""

    seq: int
    name: str
    digest: bytes
    offset: Annotated[int, msgspec.Meta(ge=0)]
    size: Annotated[int, msgspec.Meta(ge=0, le=64 * 2**20)]


class AddVolumeFiles(Message, tag=146):
    """Store what files hold, to be named in the CommitVolume of the same `batch`, an id of the sender's choice. Each is
    `data`, or, where its `descriptors` is 1, a regular file that rides along. Answer: Done, body a list of AddedFile in
    that order."""

    seq: int
    batch: str
    data: list[bytes]
    descriptors: list[Annotated[int, msgspec.Meta(ge=0, le=1)]]


class CommitVolume(Message, tag=147):
    """Make a new version of a volume. `changes` is an encoded VolumeChanges; where `descriptors` is 1 it is b"" and
    rides along as a memory file. Answer: Done, body a VolumeReport."""

    seq: int
    name: str
    batch: str
    changes: bytes
    descriptors: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0


class VolumeEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A file, directory or symlink of a volume. `path` is relative, b"" the volume itself; `mode` is st_mode. Regular
    files have `size` and, unless empty, the `digest` (SHA-256) of their bytes; symlinks have a `target`."""

    path: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    digest: bytes = b""
    target: bytes = b""


class VolumeChanges(msgspec.Struct, frozen=True):
    """What one writer changes: what goes, then what is put in. With `only_new` all is refused where a file is in the
    place of one."""

    entries: tuple[VolumeEntry, ...] = ()
    removed: tuple[bytes, ...] = ()
    only_new: bool = False


class VolumeVersion(msgspec.Struct, frozen=True):
    """A version of a volume, its root directory among its entries; parents come before what is in them."""

    version: str
    entries: tuple[VolumeEntry, ...] = ()


class AddedFile(msgspec.Struct, frozen=True, array_like=True):
    """What became of a file's bytes."""

    digest: bytes
    size: int


class VolumeReport(msgspec.Struct, frozen=True):
    """A volume. Times are seconds since the epoch."""

    volume_id: str  # "vo-..."
    name: str
    version: str
    created_at: float
    updated_at: float
    ephemeral: bool = False


class MountedVolume(msgspec.Struct, frozen=True):
    """A volume as a container has it: `version` is what it saw there when it started. One that is read-only at `path`
    is reloaded through another path."""

    name: str
    path: str
    version: str
    read_only: bool = False
    written_at: str = ""
