"""What the paths of a tree say about who opens what: libraries by their names, packages, and what each start opens."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from farcall.content.tiers.layout import is_library
from farcall.content.tree import Entry

_MODULES = (b".pyc", b".py")
_EXTENSION = re.compile(rb".*\.(cpython-[^/.]*|abi3)\.so")
_METADATA = re.compile(rb"(.*-packages/)[^/]*\.(?:dist|egg)-info/(.*)")
_PACKAGE = re.compile(rb"(.*/(?:site|dist)-packages/[^/]+)/|(.*\blib/python3[^/]*)/(?!(?:site|dist)-packages/)")
_INTERPRETER = re.compile(rb"(.*/)?bin/python3\.\d+")
_STARTS = re.compile(
    rb"etc/(passwd|group|nsswitch\.conf|ld\.so\.cache)|.*/zoneinfo/Etc/UTC|.*/C\.utf8/LC_CTYPE|.*/gconv-modules\.cache"
    rb"|.*-packages/[^/]*\.pth"
)
_MOST_INTERPRETERS = 2


def is_program(path: bytes) -> bool:
    """Whether it may be a program, by its folder."""
    return posixpath.dirname(path).rpartition(b"/")[2] in (b"bin", b"sbin")


def package_of(path: bytes) -> bytes | None:
    """The folder of the package that a file belongs to, for the standard library its own; None for what is in none."""
    found = _PACKAGE.match(path)
    return found and (found[1] or found[2])


def group_of(path: bytes) -> bytes | None:
    """What a file is opened together with: modules of one package, what is known of installed packages. A name for all
    of these; None for what is opened by itself."""
    if path.endswith(_MODULES):
        package = package_of(path)
        return package and package + path[path.rindex(b".") :]
    found = _METADATA.fullmatch(path)
    return found and found[1] + found[2]


@dataclass(frozen=True)
class Names:
    """The paths of one tree."""

    libraries: dict[bytes, tuple[Entry, ...]]
    """Files by the last part of their path, and by those of symbolic links to them."""
    groups: dict[bytes, tuple[bytes, ...]]
    """The objects of what is opened together, in the tree's order, by `group_of`."""
    extensions: dict[bytes, tuple[Entry, ...]]
    """Libraries that a package's modules are in, by `package_of`."""
    interpreters: tuple[Entry, ...]
    """Python, where it is."""
    starts: tuple[bytes, ...]
    """Small objects that programs open as they start, whatever they do."""

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Names:
        """Looks through a tree."""
        libraries: dict[bytes, dict[bytes, Entry]] = {}
        groups: dict[bytes, list[bytes]] = {}
        extensions: dict[bytes, list[Entry]] = {}
        links: list[Entry] = []
        by_path: dict[bytes, Entry] = {}
        interpreters: list[Entry] = []
        starts: list[bytes] = []
        for entry in entries:
            path = entry.path
            if entry.is_symlink:
                if is_library(path):
                    links.append(entry)
            elif not entry.digest:
                continue
            elif (group := group_of(path)) is not None:
                groups.setdefault(group, []).append(entry.digest)
            elif is_library(path):
                by_path[path] = entry
                libraries.setdefault(entry.name, {})[path] = entry
                if _EXTENSION.fullmatch(path) and (package := package_of(path)):
                    extensions.setdefault(package, []).append(entry)
            elif _STARTS.fullmatch(path):
                starts.append(entry.digest)
            elif _INTERPRETER.fullmatch(path):
                interpreters.append(entry)
        for link in links:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(link.path), link.target)).lstrip(b"/")
            if (entry := by_path.get(target)) is not None:
                libraries.setdefault(link.name, {})[target] = entry
        return cls(
            {name: tuple(found.values()) for name, found in libraries.items()},
            {group: tuple(digests) for group, digests in groups.items()},
            {package: tuple(found) for package, found in extensions.items()},
            tuple(interpreters[:_MOST_INTERPRETERS]),
            tuple(starts),
        )

    def standard_library(self, interpreter: Entry) -> Iterator[bytes]:
        """The bytecode of an interpreter's own modules."""
        prefix = posixpath.dirname(posixpath.dirname(interpreter.path))
        yield from self.groups.get(posixpath.join(prefix, b"lib", interpreter.name) + b".pyc", ())
