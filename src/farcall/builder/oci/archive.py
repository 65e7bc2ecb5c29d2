"""Image archives as others make them: OCI layouts, as a tar file or a directory, and what `docker save` writes."""

import hashlib
import posixpath
import tarfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from farcall.builder.oci import manifest as formats
from farcall.builder.oci.export import INDEX_FILE, LAYOUT_FILE, NAME_ANNOTATION
from farcall.builder.oci.image import Document, Pulled, check_platform, find
from farcall.builder.oci.layers import LayerStack
from farcall.builder.oci.manifest import MAX_DOCUMENT_BYTES, Index
from farcall.builder.oci.platform import Platform, this_machine
from farcall.builder.oci.reference import parse
from farcall.content import Lease
from farcall.content.disk import disk_error
from farcall.errors import ContentError, CorruptedError, InvalidError, NotFoundError

_DOCKER_FILE = "manifest.json"
_MAX_LINKS = 8
# Docker's is the whole name, the specification's only the tag, as a rule.
_NAMES = ("io.containerd.image.name", NAME_ANNOTATION)


def import_archive(lease: Lease, path: Path, *, name: str = "", platform: Platform | None = None) -> Pulled:
    """Take in the image that is in the archive `path`, or the one of its images that is called `name` or tagged so.

    All digests are verified. The lease keeps the tree. Raises NotFoundError for no such file, image or platform (which
    there are), ContentError for what is no archive, CorruptedError for a damaged one, UnimplementedError for an image
    in a form that farcall cannot read.
    """
    platform = platform or this_machine()
    with _opened(path) as archive:
        if archive.has(LAYOUT_FILE):
            return _from_layout(lease, archive, name, platform)
        if archive.has(_DOCKER_FILE):
            return _from_docker(lease, archive, name, platform)
    raise ContentError(
        f"{path} is no archive of an image: it has neither {LAYOUT_FILE} (`skopeo copy ... oci-archive:FILE`, `podman "
        f"save --format oci-archive`) nor {_DOCKER_FILE} (`docker save`)"
    )


class _Archive(Protocol):
    """Files by name."""

    @property
    def name(self) -> str: ...

    def has(self, name: str) -> bool: ...

    def open(self, name: str) -> BinaryIO:
        """Raises CorruptedError where there is no such file."""
        ...


@contextmanager
def _opened(path: Path) -> Generator["_Archive"]:
    try:
        if path.is_dir():
            yield _Directory(path)
            return
        with path.open("rb") as file:
            start = file.read(4)
            if start[:2] == b"\x1f\x8b" or start == b"\x28\xb5\x2f\xfd":
                program = "gunzip" if start[:2] == b"\x1f\x8b" else "unzstd"
                raise ContentError(f"{path} is compressed as a whole: run `{program}` on it first")
            file.seek(0)
            yield _Tar(path, file)
    except OSError as error:
        raise disk_error(error, "reading", path) from error


class _Directory:
    """An archive that has been unpacked."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path.resolve()

    def has(self, name: str) -> bool:
        return self._inside(name).is_file()

    def open(self, name: str) -> BinaryIO:
        path = self._inside(name)
        # Names are the archive's own, and may lead anywhere.
        if not (path.is_file() and path.is_relative_to(self._path)):
            raise _lacks(self.name, name)
        return path.open("rb")

    def _inside(self, name: str) -> Path:
        return (self._path / name).resolve()


class _Tar:
    """A tar file, whose members are read where they lie."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.name = str(path)
        try:
            self._tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
            self._members = {posixpath.normpath(member.name): member for member in self._tar}
        except tarfile.TarError as error:
            raise ContentError(f"{path} cannot be read as a tar archive: {error}") from error

    def has(self, name: str) -> bool:
        return self._member(name) is not None

    def open(self, name: str) -> BinaryIO:
        member = self._member(name)
        found = self._tar.extractfile(member) if member is not None else None
        if found is None:
            raise _lacks(self.name, name)
        return found  # pyright: ignore[reportReturnType]

    def _member(self, name: str) -> tarfile.TarInfo | None:
        """Old versions of docker save a layer that two images share once, and link to it."""
        for _ in range(_MAX_LINKS):
            member = self._members.get(posixpath.normpath(name))
            if member is None or member.isfile():
                return member
            if not (member.issym() or member.islnk()):
                return None
            name = posixpath.join(posixpath.dirname(name), member.linkname) if member.issym() else member.linkname
        return None


class _Layout:
    """The image of an OCI layout, as `farcall.builder.oci.image.find` looks for it."""

    def __init__(self, archive: _Archive, name: str) -> None:
        self.name = f"{archive.name} ({name})" if name else archive.name
        self.archive = archive
        self._wanted = name

    def document(self, version: str) -> Document:
        """The document of a digest; "" is the index of the whole archive, or of the images of it that are wanted."""
        if version:
            return Document(self.small_blob(version, 0), "", version)
        data = _read(self.archive, INDEX_FILE)
        index = formats.read_document(data, f"{INDEX_FILE} of {self.archive.name}", formats.OCI_INDEX)
        if not isinstance(index, Index):
            raise ContentError(f"{INDEX_FILE} of {self.archive.name} is no index of images")
        notes = [entry.annotations or {} for entry in index.manifests]
        names = [[note[key] for key in _NAMES if key in note] for note in notes]
        chosen = _called(self._wanted, names, self.archive.name)
        data = msgspec.json.encode({"schemaVersion": 2, "manifests": [index.manifests[place] for place in chosen]})
        return Document(data, formats.OCI_INDEX, "")

    def small_blob(self, digest: str, size: int) -> bytes:
        data = _read(self.archive, blob_path(digest))
        algorithm, _, promised = digest.partition(":")
        if hashlib.new(algorithm, data).hexdigest() != promised:
            raise CorruptedError(f"{self.name} is damaged: its {digest} are {len(data):,} bytes of another digest")
        return data


def _from_layout(lease: Lease, archive: _Archive, name: str, platform: Platform) -> Pulled:
    layout = _Layout(archive, name)
    image = find(layout, "", platform)
    stack = LayerStack(lease, image.configuration.diff_ids, layout.name)
    # Their own digests need no look: what the layers are unpacked to is in the configuration, which is verified.
    stack.add_all(lambda place: archive.open(blob_path(image.layers[place].digest)))
    return Pulled(stack.tree_id, image.configuration.config, image.digest)


class _Saved(msgspec.Struct, rename="pascal"):
    """One image that `docker save` wrote."""

    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


def _from_docker(lease: Lease, archive: _Archive, name: str, platform: Platform) -> Pulled:
    try:
        images = msgspec.json.decode(_read(archive, _DOCKER_FILE), type=tuple[_Saved, ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ContentError(f"{_DOCKER_FILE} of {archive.name} cannot be read: {error}") from error
    chosen = _called(name, [image.repo_tags or () for image in images], archive.name)
    if len(chosen) != 1:
        raise NotFoundError(
            f"{archive.name} has {len(chosen)} images without a name, and which is meant cannot be said"
        )
    image = images[chosen[0]]
    data = _read(archive, image.config)
    configuration = formats.read_configuration(data, len(image.layers), archive.name)
    check_platform(configuration, platform, archive.name)
    stack = LayerStack(lease, configuration.diff_ids, archive.name)
    stack.add_all(lambda place: archive.open(image.layers[place]))
    return Pulled(stack.tree_id, configuration.config, f"sha256:{hashlib.sha256(data).hexdigest()}")


def blob_path(digest: str) -> str:
    """Where a layout has a blob."""
    return f"blobs/{digest.replace(':', '/')}"


def _called(wanted: str, names: Sequence[Sequence[str]], archive: str) -> list[int]:
    """The places of the images that are meant, by the names that each has; all of them where none has to be chosen.

    A name is meant by itself, by its tag, and by the whole name that it is short for.
    """
    different = sorted({some[0] for some in names if some})
    if not wanted:
        if len(different) > 1:
            raise NotFoundError(f"{archive} has several images: {', '.join(different)}. Say which one with its name")
        return list(range(len(names)))
    chosen = [place for place, some in enumerate(names) if any(_means(wanted, name) for name in some)]
    if not chosen:
        raise NotFoundError(
            f"{archive} has no image {wanted!r}. Its images: {', '.join(different) or 'one without a name'}"
        )
    return chosen


def _means(wanted: str, name: str) -> bool:
    if wanted in (name, name.rpartition(":")[2]):
        return True
    try:
        return parse(wanted) == parse(name)
    except InvalidError:
        return False


def _read(archive: _Archive, name: str) -> bytes:
    with archive.open(name) as file:
        data = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ContentError(f"{name} of {archive.name} has more than {MAX_DOCUMENT_BYTES:,} bytes, and is refused")
    return data


def _lacks(archive: str, name: str) -> CorruptedError:
    return CorruptedError(f"{archive} is damaged: it has no {name}")
