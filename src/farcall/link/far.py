"""The end of a link on the server's machine: `python -m farcall.link.far SESSION new|again`, run by `ssh`.

This process only passes bytes between `ssh` and the *holder*, which it starts, and which has the connections to the
server: the holder stays when `ssh` is cut, and the next `ssh` of the same session finds it. What it says first is one
line of text, so that the other end can tell it from what a login prints.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress

from farcall import errors, settings
from farcall.link.channel import Connect, over_socket
from farcall.link.relay import Relay
from farcall.link.stream import LIMIT, PipeStream

MARK = "farcall-link:"
# That the connections outlive the last word from the other end: longer than that one may take to see that the link is
# cut, and to make another one.
HELD_SECONDS = 150.0


def main(arguments: list[str]) -> int:
    """Passes bytes until either side ends."""
    session, mode = arguments
    if mode == "hold":
        return _hold(session)
    path = _socket_path(session)
    try:
        if mode == "new":
            _start_holder(session)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
    except errors.FarcallError as error:
        _say(f"error {error.code} {json.dumps(str(error))}")
        return 3
    except OSError:
        _say("gone")
        return 3
    _say("ready")
    _splice(sock)
    return 0


def _say(line: str) -> None:
    os.write(1, f"{MARK}{line}\n".encode())


def _socket_path(session: str) -> str:
    return str(settings.paths().runtime / f"l-{session[:8]}")


def _splice(sock: socket.socket) -> None:
    def up() -> None:
        with suppress(OSError):
            while data := os.read(0, LIMIT):
                sock.sendall(data)
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    threading.Thread(target=up, daemon=True).start()
    with suppress(OSError):
        while data := sock.recv(LIMIT):
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]


def _start_holder(session: str) -> None:
    """Returns when it listens. Raises what keeps the server from starting."""
    ready, announce = os.pipe()
    try:
        with open(settings.paths().state / "link.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "farcall.link.far", session, "hold"],
                stdin=subprocess.DEVNULL,
                stdout=announce,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
    except OSError as error:
        os.close(ready)
        raise errors.ConnectionError(f"the holder of the link could not be started: {error}") from error
    finally:
        os.close(announce)
    with os.fdopen(ready, "rb") as pipe:
        word = pipe.readline().decode(errors="replace").strip()
    if word != "ready":
        process.wait()
        code, _, message = word.partition(" ")
        raise errors.from_code(code or "connection", json.loads(message) if message else "the holder of the link ended")
    process.returncode = 0  # nobody's child from here on


def _hold(session: str) -> int:
    from farcall.sdk import client

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = _socket_path(session)
    try:
        client.connect_or_start().close()
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen()
    except (errors.FarcallError, OSError) as error:
        code = error.code if isinstance(error, errors.FarcallError) else "connection"
        os.write(1, f"{code} {json.dumps(str(error))}\n".encode())
        return 3
    try:
        asyncio.run(_Holder(bytes.fromhex(session), listener).serve())
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
    return 0


class _Holder:
    def __init__(self, session_id: bytes, listener: socket.socket) -> None:
        self._relay = Relay(session_id, _dial)
        self._listener = listener
        self._attached: asyncio.Task[None] | None = None
        self._stream_ended = asyncio.Event()

    async def serve(self) -> None:
        """Until the other end says good-bye, or nothing was heard from it for `HELD_SECONDS`, whether or not there is
        a connection: where a machine is gone without a word, its `ssh` here may stay for hours."""
        server = await asyncio.start_unix_server(self._attach, sock=self._listener, limit=LIMIT)
        null = os.open(os.devnull, os.O_WRONLY)
        os.write(1, b"ready\n")
        os.dup2(null, 1)
        os.close(null)
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with server:
            while not self._relay.said_bye:
                left = max(began, self._relay.heard) + HELD_SECONDS - loop.time()
                if left <= 0:
                    logging.getLogger("farcall.link").warning("the other end was silent for %.0f s", HELD_SECONDS)
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stream_ended.wait(), left)
                self._stream_ended.clear()
            self._relay.close()
            # What the connections' ends cause is nobody's any more.

    async def _attach(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        before, self._attached = self._attached, asyncio.current_task()
        if before is not None:  # of an `ssh` that the other end has given up, and whose end has not been seen here
            before.cancel()
            await asyncio.gather(before, return_exceptions=True)
        try:
            await self._relay.run(PipeStream(reader, writer))
        except errors.ProtocolError as error:
            logging.getLogger("farcall.link").error("the link is ended: %s", error)
        finally:
            writer.close()
            if self._attached is asyncio.current_task():
                self._attached = None
                self._stream_ended.set()


def _dial() -> Connect:
    from farcall.sdk import client

    path = str(settings.paths().server_socket)
    for _ in range(2):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
            return over_socket(sock)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
        try:
            client.connect_or_start().close()  # it was idle, and has ended itself
        except errors.FarcallError as error:
            raise OSError(str(error)) from error
    raise OSError(f"nobody listens on {path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
