"""Local files and folders as trees of the content store, which builds copy from and containers see."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from farcall.errors import InvalidError

if TYPE_CHECKING:
    from farcall.content import Entry, Lease, Tree
    from farcall.content.statcache import StatCache
    from farcall.sdk.client import Client
    from farcall.sdk.image_options import Ignore
    from farcall.sdk.image_parts import LocalFiles
    from farcall.sdk.uploads import Uploads
    from farcall.spec.function import TreeRef

# What is left out of the user's source: no program reads it, and it can be a thousand times larger than the rest.
NOT_SOURCE = frozenset({".git", ".hg", ".svn", ".venv", "node_modules"})
NO_PYTHON = ("**", "!**/*.py")


class LocalTrees:
    """The trees that one program's images and functions need, each file read at most once.

    The content stays in the store until `close`, by which time the server must have made it its own. All methods raise
    the errors of `farcall.content` for files that cannot be read and a store that cannot be written.
    """

    def __init__(self) -> None:
        self._lease: Lease | None = None
        self._cache: StatCache | None = None
        self._folders: dict[tuple[object, ...], str] = {}
        self._made: set[str] = set()
        self._uploads: Uploads | None = None
        self.paths: set[str] = set()  # all that was looked at

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the content."""
        uploads, self._uploads = self._uploads, None
        if uploads is not None:
            uploads.release()
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def bring_to(self, client: Client) -> None:
        """Returns when the server has all trees so far. One on this machine shares the store, and has them."""
        if not client.url or self._lease is None:
            return
        if self._uploads is None or self._uploads.client is not client:
            from farcall.sdk.uploads import Uploads

            self._uploads = Uploads(client)
        self._uploads.bring(self._lease.store, sorted(self._made))

    def directory(
        self,
        path: Path,
        ignore: Ignore = (),
        *,
        only: Sequence[str] | None = None,
        files: Mapping[str, Path] | None = None,
        is_source: bool = False,
    ) -> str:
        """The tree of a folder, without what `ignore` matches. With `only` (patterns of paths) no more of it need be
        there than what they match; `files` are put into it at their paths."""
        self.paths.add(os.fspath(path))
        patterns: object = id(ignore) if callable(ignore) else tuple(ignore)  # its image keeps it
        key = (path, patterns, None if only is None else tuple(only), is_source)
        tree_id = self._folders.get(key)
        if tree_id is None:
            tree_id = self._folders[key] = self._ingest(path, ignore, only, is_source)
            self._made.add(tree_id)
        if not files:
            return tree_id
        from farcall.content import Diff

        lease = self._open()
        added = lease.store.tree(self.files(files))
        return self._add(lease.store.tree(tree_id).merge(Diff(added.entries[1:])))

    def files(self, files: Mapping[str, Path]) -> str:
        """The tree of some files, by their path in it."""
        import stat

        from farcall.content import Entry
        from farcall.content.disk import disk_error

        lease = self._open()
        entries: list[Entry] = []
        self.paths |= {os.fspath(path) for path in files.values()}
        for name, path in files.items():
            try:
                status = path.stat()
            except OSError as error:
                raise disk_error(error, "reading", path) from None
            digest, size = lease.add_file(path.resolve())
            mode = stat.S_IFREG | stat.S_IMODE(status.st_mode)
            entries.append(
                Entry(os.fsencode(name), mode, mtime_ns=status.st_mtime_ns, size=size, digest=digest if size else b"")
            )
        return self._add(entries)

    def module(self, name: str, ignore: Ignore | None = None) -> str:
        """The tree of a module, as it is to be in a folder of `sys.path`; by default only what is Python source."""
        from farcall.content import Diff
        from farcall.sdk import source

        lease = self._open()
        _, found = source.files_of(name)
        if not found:
            raise InvalidError(f"the module {name!r} is installed here, or built in: install it in the image instead")
        whole = lease.store.tree(self.files({}))
        for file in found:
            path = Path(file.source)
            if path.is_dir():
                tree = lease.store.tree(self.directory(path, NO_PYTHON if ignore is None else ignore, is_source=True))
                tree = tree.under(os.fsencode(path.name))
            else:
                tree = lease.store.tree(self.files({path.name: path}))
            whole = whole.merge(Diff(tree.entries[1:]))
        return self._add(whole)

    def mounted(self, files: Iterable[LocalFiles]) -> tuple[TreeRef, ...]:
        """What containers are to mount for some files and folders."""
        from farcall.spec.function import TreeRef

        found: list[TreeRef] = []
        for file in files:
            path = Path(file.source)
            if path.is_dir():
                tree_id = self.directory(path, file.ignore, is_source=file.is_source)
                found.append(TreeRef(tree_id, file.target))
            else:
                name = path.name
                found.append(TreeRef(self.files({name: path}), file.target, name))
        return tuple(dict.fromkeys(found))

    def _add(self, tree: Tree | Iterable[Entry]) -> str:
        tree_id = self._open().add_tree(tree)
        self._made.add(tree_id)
        return tree_id

    def _open(self) -> Lease:
        if self._lease is None:
            from farcall import settings
            from farcall.content import Store
            from farcall.content.statcache import StatCache

            paths = settings.paths()
            self._lease = Store(paths.content).lease("client")
            self._cache = StatCache(paths.cache / "stat")
        return self._lease

    def _ingest(self, path: Path, ignore: Ignore, only: Sequence[str] | None, is_source: bool) -> str:
        from farcall.content.ingest import ingest_directory

        lease = self._open()
        is_ignored, prune = ignoring(ignore)
        skipped = _skipping(only, is_source)

        def leave_out(name: str) -> bool:
            return is_ignored(name) or skipped(name)

        if not ignore and only is None and not is_source:
            return ingest_directory(lease, path, cache=self._cache)
        return ingest_directory(lease, path, ignore=leave_out, prune=prune, cache=self._cache)


def ignoring(ignore: Ignore) -> tuple[Callable[[str], bool], bool]:
    """Whether a path inside a folder is left out; and whether what is in a folder that is left out is so, too."""
    from farcall.sdk.file_pattern_matcher import FilePatternMatcher
    from farcall.spec.patterns import Patterns

    if isinstance(ignore, FilePatternMatcher):
        return lambda path: ignore(path), ignore.can_prune_directories()
    if callable(ignore):
        return lambda path: bool(ignore(Path(path))), False
    patterns = Patterns(ignore)
    return patterns.match, not patterns.has_exceptions


def _skipping(only: Sequence[str] | None, is_source: bool) -> Callable[[str], bool]:
    """Whether a path is none of what is wanted."""
    wanted = None if only is None else [_literal(pattern) for pattern in only]

    def skip(path: str) -> bool:
        if is_source and not NOT_SOURCE.isdisjoint(path.split("/")):
            return True
        if wanted is None:
            return False
        return not any(_touches(path, prefix) for prefix in wanted)

    return skip


def _literal(pattern: str) -> str:
    """The leading components of a pattern that are no patterns, "" where the first is one."""
    names: list[str] = []
    for name in pattern.split("/"):
        if any(letter in name for letter in "*?[\\"):
            break
        names.append(name)
    joined = "/".join(names)
    return "" if joined == "." else joined


def _touches(path: str, prefix: str) -> bool:
    """Whether a path leads to `prefix`, or is in it."""
    return not prefix or path == prefix or path.startswith(f"{prefix}/") or prefix.startswith(f"{path}/")
