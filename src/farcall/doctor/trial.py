"""Trying something for real, in a child that may fail, enter namespaces, mount and hang without anybody noticing."""

import errno
import json
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from farcall.launcher import syscalls

TRIAL_SECONDS = 4.0  # after this a trial counts as hung; it takes milliseconds, but not on a machine that is busy
_END_SECONDS = 2.0  # for a killed child to be gone
CAP_SYS_ADMIN = 21


class Trial(NamedTuple):
    """How it went: `text` is what the trial returned, or the kernel's complaint, whose number is `errno`."""

    ok: bool
    text: str
    errno: int = 0


def attempt(work: Callable[[], str | None], seconds: float = TRIAL_SECONDS) -> Trial:
    """Runs `work` in a forked child and says how it went, after at most `seconds` and a little for the clean-up."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(_outcome(work)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        told, _, _ = select.select([reader], [], [], seconds)
        answer = os.read(reader, 65536) if told else b""
    finally:
        os.close(reader)
        _end(pid)
    if answer:
        return Trial(*json.loads(answer))
    if told:
        return Trial(False, "it ended without an answer")
    return Trial(False, f"no answer within {seconds:g} s", errno.ETIMEDOUT)


def _outcome(work: Callable[[], str | None]) -> Trial:
    try:
        return Trial(True, work() or "")
    except OSError as error:
        if error.errno is None:
            return Trial(False, str(error))
        return Trial(False, f"{os.strerror(error.errno)} ({errno.errorcode.get(error.errno, '?')})", error.errno)
    except Exception as error:
        return Trial(False, f"{type(error).__name__}: {error}")


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _END_SECONDS
    while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.0005)  # a child stuck in the kernel cannot be waited for


def is_privileged() -> bool:
    """Whether this process may do as root does, here: containers have root users who may not."""
    return os.geteuid() == 0 and bool(syscalls.capabilities() & 1 << CAP_SYS_ADMIN)


def enter_user_namespace() -> None:
    """Become root of a user namespace that maps nobody but this user."""
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(syscalls.NEWUSER)
    with suppress(FileNotFoundError):
        Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")


def enter_mount_namespace(*, in_user_namespace: bool) -> None:
    """Enter a mount namespace from which nothing gets out; without privileges only a user namespace allows it."""
    if in_user_namespace:
        enter_user_namespace()
    syscalls.unshare(syscalls.NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)


def scratch(variable: str = "XDG_STATE_HOME", otherwise: str = ".local/state") -> tempfile.TemporaryDirectory[str]:
    """A directory on the filesystem where farcall keeps its state, or what else is below `variable`; a temporary one
    elsewhere when nothing can be made there. Raises OSError when nothing can be made anywhere."""
    place = os.environ.get(variable) or os.path.join(os.path.expanduser("~"), otherwise)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    try:
        return tempfile.TemporaryDirectory(prefix=".farcall-doctor-", dir=place)
    except OSError:
        return tempfile.TemporaryDirectory(prefix="farcall-doctor-")
