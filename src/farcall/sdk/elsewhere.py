"""The link to a server on another machine: a process of its own, with a socket behind which that server seems to be."""

import os
import signal
from pathlib import Path

from farcall import settings
from farcall.sdk.embedded import program_settings
from farcall.sdk.starting import start
from farcall.version import __version__


def link_socket(url: str) -> Path:
    """Where the link listens. Each farcall has its own: the other end is the same as this one."""
    from farcall.interpreters import private

    return settings.paths().link_socket(f"{url} {__version__} {private.source()}")


def start_link(url: str) -> None:
    """Starts the link and returns when it is there, or when another start got there first.

    Raises ConnectionError, AuthError or another error that says what keeps it from coming about.
    """
    arguments = url, str(link_socket(url)), program_settings().ssh
    start("farcall.link.near", arguments, settings.paths().link_log, f"the link to {url}")


def end_link(url: str) -> None:
    """Ends the link, where there is one, and returns when it has ended."""
    import fcntl

    try:
        with open(f"{link_socket(url)}.lock") as lock:
            pid = int(lock.read() or 0)
            if pid and link_socket(url).exists():
                os.kill(pid, signal.SIGTERM)
                fcntl.flock(lock, fcntl.LOCK_EX)  # it holds that to its end
    except (FileNotFoundError, ProcessLookupError, ValueError):
        pass
