"""A command in a container, in place of the runner: a step of an image, run as one of the image's users."""

import contextlib
import os
from typing import NoReturn

from farcall.spec.container import ContainerSpec


class Identity:
    """A user of the container: ids, supplementary groups and home."""

    def __init__(self, user: str) -> None:
        """By name or id, with a group after a colon or without. Raises OSError where there is none of that name."""
        name, _, group = user.partition(":")
        entry = _entry("/etc/passwd", name or "0")
        if entry is None and not (name or "0").isdigit():
            raise OSError(2, f"there is no user {name!r} in the image's /etc/passwd")
        self.name = entry[0] if entry else name
        self.uid = int(entry[2]) if entry else int(name or 0)
        self.gid = int(entry[3]) if entry else 0
        self.home = entry[5] if entry and len(entry) > 5 and entry[5] else "/root" if self.uid == 0 else "/"
        self.groups = [] if group else _groups(self.name)
        if group:
            found = _entry("/etc/group", group)
            if found is None and not group.isdigit():
                raise OSError(2, f"there is no group {group!r} in the image's /etc/group")
            self.gid = int(found[2]) if found else int(group)


def _lines(file: str) -> list[list[str]]:
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as stream:
            return [line.rstrip("\n").split(":") for line in stream]
    except OSError:
        return []


def _entry(file: str, name: str) -> list[str] | None:
    """The line for a name or an id, as /etc/passwd and /etc/group have it."""
    for fields in _lines(file):
        if (
            len(fields) > 3
            and name in (fields[0], fields[2])
            and fields[2].isdigit()
            and (file != "/etc/passwd" or fields[3].isdigit())
        ):
            return fields
    return None


def _groups(user: str) -> list[int]:
    """The groups that list the user as a member."""
    return [int(line[2]) for line in _lines("/etc/group") if len(line) > 3 and user in line[3].split(",")]


def enter(spec: ContainerSpec) -> NoReturn:
    """Replace the process by the command, found by the container's PATH. Raises OSError."""
    who = Identity(spec.user)
    environment = {**os.environ, "HOME": spec.env.get("HOME", who.home), "USER": who.name}
    # Nothing but the standard streams is a command's: the worker has nothing to say to it.
    for fd in (3, 4, 5):
        os.set_inheritable(fd, False)
    if who.uid or who.gid:
        with contextlib.suppress(PermissionError):  # a user namespace of one id has no groups to give
            os.setgroups(who.groups)
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
    try:
        os.execvpe(spec.command[0], list(spec.command), environment)
    except OSError as error:
        # As a shell says it: what cannot be executed is the command's failure, not the container's.
        os.write(2, f"{spec.command[0]}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
