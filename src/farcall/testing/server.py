"""A server of a test's own."""

from __future__ import annotations

import os
import select
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from unittest import mock

from farcall import errors
from farcall.sdk import client
from farcall.wire.messages import StopServer

ENVIRONMENT = {"FARCALL_TESTING": "1"}
STOP_SECONDS = 30.0


class Server:
    """A farcall server with a state directory of its own, for the time of a `with` block. Nothing of it stays behind.

    Images and interpreters are those of the user's other servers. Its clock can be moved, and it lets tests make
    attempts fail. Several apps may run on it, one after another.
    """

    def __init__(self) -> None:
        self._root = ""

    def __enter__(self) -> Server:
        self._root = tempfile.mkdtemp(prefix="farcall-test-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with self.serving():
                _stop()
        finally:
            shutil.rmtree(self._root, ignore_errors=True)

    @contextmanager
    def serving(self) -> Generator[None]:
        """Makes this process a client of the server. Raises ConflictError where it runs an app already."""
        client.disconnect()
        with mock.patch.dict(os.environ, ENVIRONMENT | {"FARCALL_STATE_DIR": self._root}):
            try:
                yield
            finally:
                client.disconnect()


def _stop() -> None:
    server = client.current()
    process = os.pidfd_open(server.status().pid)
    try:
        server.request(lambda seq: StopServer(seq, True))
    except errors.ConnectionLostError:
        pass  # it ended before it could answer
    try:
        select.select([process], [], [], STOP_SECONDS)
    finally:
        os.close(process)
