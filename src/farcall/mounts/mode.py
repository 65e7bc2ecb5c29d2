"""Which of the ways to mount a tree this machine has."""

from __future__ import annotations

import os
from functools import cache
from typing import Literal, NamedTuple

_INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO of the kernel
_CAP_SYS_ADMIN = 21
_FILE_BACKED = (6, 12)  # the first Linux that mounts an EROFS image from a plain file


class Mode(NamedTuple):
    """How trees are mounted, and why not better, "" where it is the best way."""

    kind: Literal["erofs", "directory"]
    why: str = ""


@cache
def mode() -> Mode:
    """The way of this process: with EROFS and overlayfs, else with directories of hard links."""
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if release < _FILE_BACKED:
        return Mode("directory", f"Linux {release[0]}.{release[1]} mounts no EROFS from a file; 6.12 does")
    if os.stat("/proc/self/ns/user").st_ino != _INITIAL_USER_NAMESPACE or not _is_administrator():
        return Mode("directory", "only the system's root can mount EROFS")
    with open("/proc/filesystems", encoding="ascii") as file:
        known = {line.split()[-1] for line in file}
    missing = [name for name in ("erofs", "overlay") if name not in known]
    if missing:
        return Mode("directory", f"this kernel has no {' and no '.join(missing)}")
    return Mode("erofs")


def _is_administrator() -> bool:
    with open("/proc/self/status", encoding="ascii") as file:
        found = next(line for line in file if line.startswith("CapEff:"))
    return bool(int(found.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
