"""The end of a link on the user's machine: a process with a socket, behind which a server elsewhere seems to listen.

It stays for a while when its last client has gone, so that the next program need not log in again; and it connects
again when the connection is cut, for as long as the other end keeps its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from farcall import errors, settings
from farcall.link import install, ssh, wheel
from farcall.link.address import Address
from farcall.link.channel import over_socket
from farcall.link.relay import Relay
from farcall.settings.paths import CUT_SUFFIX

IDLE_SECONDS = 600.0  # without clients, after which the process ends
LOST_SECONDS = 90.0  # without a connection, after which the clients are told; the other end waits longer
SILENT_SECONDS = 12.0  # after which a connection that says nothing is taken for cut
_PING_SECONDS = 4.0
_RETRY_SECONDS = 1.0
_BYE_SECONDS = 2.0  # for the other end to confirm that this one ends
_LOOK_SECONDS = 0.05


def main(announce: int, url: str, path: str, command: str) -> None:
    """Serves on the socket `path` until nobody needs it; `command` is how `ssh` is run. Writes "ready", or an error's
    code and text, to the descriptor `announce` and closes it."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        address = Address.parse(url)
        settings.paths()  # a server that has just ended has taken the sockets' directory away, if that was in /tmp
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _is_first(lock, path):
            _say(announce, "conflict")
            return
        for left in (path, f"{path}{CUT_SUFFIX}"):  # of one that was killed
            with suppress(FileNotFoundError):
                os.unlink(left)
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()} {url}".encode())  # for who ends the links to a server
        asyncio.run(_Near(ssh.Command(address, command), path, announce).serve())
    except errors.FarcallError as error:
        _say(announce, f"{error.code} {error}")
        sys.exit(3)


def _is_first(lock: int, path: str) -> bool:
    """Whether this process is the link from now on. False where another one listens: one that is still connecting is
    waited for, and one that fails or ends gives way."""
    while True:
        try:
            flock(lock, LOCK_EX | LOCK_NB)
            return True
        except BlockingIOError:
            if os.path.exists(path):
                return False
        time.sleep(_LOOK_SECONDS)


def _say(announce: int, word: str) -> None:
    with suppress(OSError):  # said before, or whoever started us is gone
        os.write(announce, word.encode())
        os.close(announce)


class _Near:
    def __init__(self, command: ssh.Command, path: str, announce: int) -> None:
        self._command = command
        self._path = path
        self._cut = Path(f"{path}{CUT_SUFFIX}")
        self._announce: int | None = announce  # until who started this process knows what came of it
        self._session_id = os.urandom(16)
        self._relay = Relay(self._session_id)
        self._ending = asyncio.Event()
        self._log = logging.getLogger("farcall.link")

    async def serve(self) -> None:
        attached = await self._connect("new")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self._path)
        os.chmod(self._path, 0o600)
        listener.listen(128)
        listener.setblocking(False)
        accepting = asyncio.ensure_future(self._accept(listener))
        assert self._announce is not None
        _say(self._announce, "ready")
        self._announce = None
        self._log.info("linked to %s, pid %d", self._command.address, os.getpid())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        idle = asyncio.ensure_future(self._idle())
        linked = asyncio.ensure_future(self._stay_linked(attached))
        try:
            await asyncio.wait([idle, linked], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._mark(is_cut=False)
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            for task in (accepting, idle, linked):
                task.cancel()
            await asyncio.gather(accepting, idle, linked, return_exceptions=True)
            listener.close()
            self._relay.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._log.warning("a connection was not accepted: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            self._relay.open(over_socket(sock))

    async def _idle(self) -> None:
        """Returns when nobody has needed the link for a while, or it is told to end."""
        limit = float(os.environ.get("FARCALL_IDLE_SECONDS", IDLE_SECONDS))
        loop = asyncio.get_running_loop()
        since = loop.time()
        while loop.time() - since < limit and not self._ending.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), min(limit, 1.0))
            if self._relay.channels:
                since = loop.time()
        self._relay.bye()
        # Else the other end would keep for a while what nobody comes back for.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._relay.confirmed(), _BYE_SECONDS)

    # --- the connection

    async def _connect(self, mode: str) -> ssh.Attached:
        """A stream to the other end of this session. Raises what keeps it from being there."""
        key = wheel.key()
        for attempt in range(2):
            attached = await ssh.attach(self._command, install.ATTACH, key, self._session_id.hex(), mode)
            word, _, rest = attached.word.partition(" ")
            if word == "ready":
                return attached
            await ssh.end(attached.process)
            if word == "missing" and attempt == 0:
                self._log.info("installing farcall on %s", self._command.address)
                if self._announce is not None:
                    with suppress(OSError):  # whoever started us is gone
                        notice = f"notice installing farcall on {self._command.address}, once\n"
                        os.write(self._announce, notice.encode())
                await install.install(self._command, key)
            elif word == "error":
                code, _, message = rest.partition(" ")
                raise errors.from_code(code, f"on {self._command.address}: {json.loads(message)}")
            elif word == "gone":
                raise errors.ConnectionLostError(f"{self._command.address} has given up this session's connections")
        raise errors.ConnectionError(f"farcall cannot be run on {self._command.address}")

    async def _stay_linked(self, attached: ssh.Attached) -> None:
        """Carries the channels, over one connection after another; returns when none can be had any more."""
        loop = asyncio.get_running_loop()
        while True:
            watch = asyncio.ensure_future(self._watch(attached))
            try:
                await self._relay.run(attached.stream)
            except errors.ProtocolError as error:
                self._log.error("the link is ended: %s", error)
                return
            finally:
                watch.cancel()
                await ssh.end(attached.process)
            said = await attached.complaints.text()
            self._log.warning("the connection to %s was cut: %s", self._command.address, said or "no word")
            self._mark(is_cut=True)
            deadline = loop.time() + LOST_SECONDS
            while True:
                try:
                    attached = await self._connect("again")
                    break
                except (errors.ConnectionLostError, errors.AuthError) as error:
                    self._log.error("the link is lost: %s", error)
                    return
                except errors.FarcallError as error:
                    self._log.warning("not connected again: %s", error)
                if loop.time() > deadline:
                    self._log.error("the link is lost: no connection for %.0f s", LOST_SECONDS)
                    return
                await asyncio.sleep(_RETRY_SECONDS)
            self._mark(is_cut=False)

    def _mark(self, *, is_cut: bool) -> None:
        """For the programs that use the link, and tell their users."""
        with suppress(OSError):
            if is_cut:
                self._cut.touch()
            else:
                self._cut.unlink()

    async def _watch(self, attached: ssh.Attached) -> None:
        """Ends a connection on which nothing comes any more."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        while True:
            await asyncio.sleep(_PING_SECONDS)
            self._relay.ping()
            if loop.time() - max(since, self._relay.heard) > SILENT_SECONDS:
                self._log.warning("the connection to %s is silent", self._command.address)
                await ssh.end(attached.process)
                return
