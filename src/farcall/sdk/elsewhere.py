"""The link to a server on another machine: a process of its own, with a socket behind which that server seems to be."""

import os
import signal
import threading
import time
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import TYPE_CHECKING

from farcall import settings
from farcall.sdk import events, output
from farcall.sdk.embedded import program_settings
from farcall.sdk.starting import start
from farcall.settings.paths import CUT_SUFFIX, LINK_PREFIX
from farcall.version import __version__

if TYPE_CHECKING:
    from farcall.wire.connection import Connection

_LOOK_SECONDS = 0.5


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


def end_links(url: str) -> None:
    """Ends the links to a server, this farcall's and those of others in the same state directory, and returns when they
    have ended."""
    for path in settings.paths().runtime.glob(f"{LINK_PREFIX}*.lock"):
        with suppress(FileNotFoundError), open(path) as lock:
            with suppress(BlockingIOError):
                flock(lock, LOCK_EX | LOCK_NB)
                continue  # it was killed: its number may be another process's by now
            pid, _, to = lock.read().partition(" ")
            if to.rstrip("/") == url.rstrip("/") and path.with_suffix("").exists():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGTERM)
                flock(lock, LOCK_EX)  # it holds that to its end


def tell_of_cuts(url: str, path: Path, client: "Connection") -> None:
    """Has the user told when the connection of a link is cut, and when it is there again, until the client's own to the
    link is closed."""
    cut = Path(f"{path}{CUT_SUFFIX}")
    name = url.removeprefix("ssh://")

    def look() -> None:
        was_cut = False
        while not client.closed:
            is_cut = cut.exists()
            if is_cut and not was_cut:
                output.emit(events.Notice(f"the connection to {name} is lost, reconnecting ..."))
            elif was_cut and not is_cut and path.exists():
                output.emit(events.Notice(f"the connection to {name} is back"))
            was_cut = is_cut
            time.sleep(_LOOK_SECONDS)

    threading.Thread(target=look, name="farcall-link", daemon=True).start()
