"""COPY, as operations on trees: no file is touched, only names change."""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from farcall.content.compression import Decompressed
from farcall.content.layers import read_layer
from farcall.content.lease import Lease
from farcall.content.tree import Diff, Entry, Tree, shown
from farcall.errors import ContentError, ImageBuildError, InvalidError
from farcall.spec.image import Copy

_LINKS = 40  # the kernel's own limit of symlinks on the way to a file


class Selection(NamedTuple):
    """What the sources of a COPY name, laid out as it will lie in the target. `single` is set where it is one file,
    which takes the target's own name unless that is a folder."""

    tree: Tree
    single: bytes | None


def select(context: Tree, sources: Sequence[str], *, parents: bool = False) -> Selection:
    """The files that `sources` name in `context`. Raises ImageBuildError for a source that names nothing."""
    chosen: dict[bytes, Entry] = {}
    single: list[bytes] = []
    folders = 0
    for source in sources:
        if ".." in source.split("/"):
            raise ImageBuildError(f"COPY {source}: a source cannot lie outside of what is copied from")
        found = context.select(source)
        if not found:
            raise ImageBuildError(f"COPY {source}: there is no such file; {_what_there_is(context, source)}")
        for entry in found:
            if entry.is_directory:
                folders += 1
                target = entry.path if parents else b""
                _put(chosen, context.subtree(entry.path).under(target).entries)
            else:
                target = entry.path if parents else entry.name
                _put(chosen, [msgspec.structs.replace(entry, path=target)])
                single.append(target)
    tree = Tree.of(chosen.values())
    return Selection(tree, single[0] if len(single) == 1 and not folders and not parents else None)


def _put(chosen: dict[bytes, Entry], entries: Iterable[Entry]) -> None:
    for entry in entries:
        before = chosen.get(entry.path)
        if before is not None and before.is_directory != entry.is_directory:
            raise ImageBuildError(f"COPY: two sources are at {shown(entry.path)}, one of them a folder")
        # Numbers of hard links are their own tree's: files that came from several are files of their own.
        chosen[entry.path] = msgspec.structs.replace(entry, link=0) if entry.link else entry


def _what_there_is(context: Tree, source: str) -> str:
    import difflib

    paths = [entry.path.decode(errors="backslashreplace") for entry in context.entries[1:]]
    near = difflib.get_close_matches(source.lstrip("./"), paths, 3)
    if near:
        return f"did you mean {', '.join(near)}?"
    return (
        "the folder it is copied from is empty, or all of it is ignored"
        if not paths
        else (f"there are {', '.join(sorted({path.partition('/')[0] for path in paths})[:8])}")
    )


def copy(
    base: Tree,
    selection: Selection,
    target: str,
    workdir: str,
    *,
    owner: tuple[int, int] | None,
    mode: int | None,
) -> Tree:
    """`base` with the selection at `target`, a path relative to `workdir`.

    Symlinks in the target's folders are followed, within the image. `owner` is (uid, gid), `mode` the permission bits
    of all that is copied; None leaves them as they are.
    """
    is_folder = target.endswith(("/", "/.")) or target in (".", "")
    path = resolve(base, posixpath.join(workdir, target))
    there = base.get(path)
    tree = selection.tree
    if selection.single is not None and not is_folder and not (there is not None and there.is_directory):
        entry = tree.get(selection.single)
        assert entry is not None
        entries = [msgspec.structs.replace(entry, path=path)]
    else:
        if there is not None and not there.is_directory:
            raise ImageBuildError(f"COPY: {shown(path)} is a file in the image; give a folder to copy into")
        entries = [entry for entry in tree.under(path).entries if len(entry.path) > len(path) or entry.path == path]
        if there is not None:
            entries = [entry for entry in entries if entry.path != path]
    entries = [_changed(entry, owner, mode) for entry in entries]
    # A folder that is there already keeps its owner and mode.
    new = [entry for entry in entries if not (entry.is_directory and _is_directory(base, entry.path))]
    try:
        return base.merge(Diff(new))
    except InvalidError as error:
        raise ImageBuildError(f"COPY to {target}: {error}") from None


def _changed(entry: Entry, owner: tuple[int, int] | None, mode: int | None) -> Entry:
    if owner is not None:
        entry = msgspec.structs.replace(entry, uid=owner[0], gid=owner[1])
    if mode is not None and not entry.is_symlink:
        entry = msgspec.structs.replace(entry, mode=stat.S_IFMT(entry.mode) | mode)
    return entry


def _is_directory(tree: Tree, path: bytes) -> bool:
    entry = tree.get(path)
    return entry is not None and entry.is_directory


def resolve(tree: Tree, path: str) -> bytes:
    """The path in `tree` that an absolute `path` leads to, symlinks followed within the tree; what does not exist yet
    is taken as it stands. Raises ImageBuildError for a circle of symlinks."""
    todo = [name for name in path.encode("utf-8", "surrogateescape").split(b"/") if name not in (b"", b".")]
    done: list[bytes] = []
    links = 0
    while todo:
        name = todo.pop(0)
        if name == b"..":
            done = done[:-1]
            continue
        entry = tree.get(b"/".join([*done, name]))
        if entry is None or not entry.is_symlink:
            done.append(name)
            continue
        links += 1
        if links > _LINKS:
            raise ImageBuildError(f"{path}: its symlinks lead in a circle")
        if entry.target.startswith(b"/"):
            done = []
        todo = [part for part in entry.target.split(b"/") if part not in (b"", b".")] + todo
    return b"/".join(done)


def owner_of(passwd: str, group: str, owner: str) -> tuple[int, int]:
    """The ids that "user", "user:group", "uid:gid" mean, by the image's /etc/passwd and /etc/group.

    As Docker does: a number is itself, and without a group a number's group is the same number, a name's its own.
    """
    user, _, group_name = owner.partition(":")
    uid, gid = _id_of(passwd, user, "user", "/etc/passwd")
    if group_name:
        gid, _ = _id_of(group, group_name, "group", "/etc/group")
    return uid, gid


def _id_of(table: str, name: str, kind: str, file: str) -> tuple[int, int]:
    """The id of a name, and in passwd that of its group."""
    if name.isdigit():
        return int(name), int(name)
    for line in table.splitlines():
        fields = line.split(":")
        if fields[0] == name and len(fields) > 3 and fields[2].isdigit():
            return int(fields[2]), int(fields[3]) if fields[3].isdigit() else int(fields[2])
    raise ImageBuildError(
        f"there is no {kind} {name!r} in the image's {file}: add it in an earlier step, or use a number"
    )


def apply_copy(lease: Lease, base: Tree, source: Tree | None, step: Copy, workdir: str, *, keep_owner: bool) -> Tree:
    """`base` after a COPY or ADD without variables in it, from the tree `source`.

    Files are root's unless the step says otherwise or, with `keep_owner`, as they are in `source`. Raises
    ImageBuildError.
    """
    owner = None if keep_owner else (0, 0)
    if step.owner:
        owner = owner_of(text_of(lease, base, b"etc/passwd"), text_of(lease, base, b"etc/group"), step.owner)
    selection = (
        select(source, step.sources, parents=step.parents) if source is not None else Selection(Tree.of(()), None)
    )
    if step.files:
        written = [
            Entry(file.name.encode(), stat.S_IFREG | 0o644, size=len(file.text.encode()), digest=_add(lease, file.text))
            for file in step.files
        ]
        only = not selection.tree.entries[1:] and len(written) == 1
        merged = selection.tree.merge(Diff(written))
        selection = Selection(merged, written[0].path if only else None)
    if step.unpack:
        base, selection = _unpacked(lease, base, selection, step.target, workdir)
    if len(selection.tree) == 1 and step.unpack:
        return base
    if len(step.sources) + len(step.files) > 1 and not step.target.endswith("/"):
        step = msgspec.structs.replace(step, target=step.target + "/")
    return copy(base, selection, step.target, workdir, owner=owner, mode=step.mode)


def _add(lease: Lease, text: str) -> bytes:
    return lease.add_bytes(text.encode())


def text_of(lease: Lease, tree: Tree, path: bytes) -> str:
    """A file of an image, "" where it has none."""
    entry = tree.get(resolve(tree, "/" + path.decode()))
    if entry is None or not entry.size:
        return ""
    return lease.store.read(entry.digest).decode(errors="replace")


def _unpacked(lease: Lease, base: Tree, selection: Selection, target: str, workdir: str) -> tuple[Tree, Selection]:
    """ADD: archives among the files are unpacked into the target, the others are left to be copied."""
    rest: list[Entry] = []
    place = resolve(base, posixpath.join(workdir, target))
    for entry in selection.tree.entries:
        if not entry.is_regular or not entry.size or b"/" in entry.path:
            rest.append(entry)
            continue
        stream = archive(lease.store.path_of(entry.digest))
        if stream is None:
            rest.append(entry)
            continue
        with stream:
            unpacked = Tree.of(()).merge(read_layer(lease, stream))
        entries = [one for one in unpacked.under(place).entries if not _is_directory(base, one.path)]
        base = base.merge(Diff(entries))
    single = selection.single if any(entry.path == selection.single for entry in rest) else None
    return base, Selection(Tree.of(rest), single)


def archive(path: Path) -> IO[bytes] | None:
    """The tar archive in a file, to be read by `read_layer`; None where it is none."""
    import bz2
    import lzma

    with open(path, "rb") as file:
        start = file.read(6)
    opener: Callable[[Path], IO[bytes]] = _open
    if start.startswith(b"BZh"):
        opener = bz2.BZ2File
    elif start.startswith(b"\xfd7zXZ\0"):
        opener = lzma.LZMAFile
    try:
        with opener(path) as stream:
            header = Decompressed(stream).read(512)
    except (OSError, EOFError, lzma.LZMAError, ContentError):
        return None
    return opener(path) if header[257:262] == b"ustar" else None


def _open(path: Path) -> IO[bytes]:
    return open(path, "rb")
