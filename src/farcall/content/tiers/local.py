"""What a worker has access to, for the other processes of its machine: they ask it over a Unix socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from farcall.content.attempts import TransientError
from farcall.content.tiers.exchange import BlobClient, BlobServer
from farcall.content.tiers.tier import Tier
from farcall.errors import ConnectionError, FarcallError, InvalidError, NotFoundError

SCHEME = "unix:"
_ANSWER_SECONDS = 120.0  # who answers has limits of its own, which are less


class LocalTier:
    """One of the tiers of a `LocalServer`."""

    def __init__(self, place: str) -> None:
        """`place` is unix:PATH#NAME. Raises `InvalidError` for another."""
        path, _, self._name = place.removeprefix(SCHEME).partition("#")
        if not place.startswith(SCHEME) or not path.startswith("/") or not self._name.isalnum():
            raise InvalidError(f"{place!r} is no tier of a process of this machine: unix:/path#name")

        def connect() -> socket.socket:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(path)
            except BaseException:
                connection.close()
                raise
            return connection

        self._client = BlobClient(self.title, connect, _ANSWER_SECONDS)

    @property
    def title(self) -> str:
        return f"this worker, from {self._name}"

    def get(self, name: str) -> bytes:
        return self._ask("get", name)

    def put(self, name: str, data: bytes) -> None:
        self._ask("put", name, data)

    def _ask(self, how: str, name: str, body: bytes = b"") -> bytes:
        try:
            return self._client.ask(how, self._name, name, body=body)
        except (FarcallError, TransientError):  # some of which are OSErrors, too
            raise
        except OSError as error:
            raise TransientError(ConnectionError, f"{self.title} cannot be asked: {error}") from error


class LocalServer:
    """Answers for tiers by name. Close it after use."""

    def __init__(self, path: Path, tiers: Callable[[], Mapping[str, Sequence[Tier]]]) -> None:
        """Listens at once, in place of one that was there. `tiers` are asked in order, each time. Raises OSError."""
        self._path = path
        self._tiers = tiers
        listener = socket.socket(socket.AF_UNIX)
        try:
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            os.chmod(path, 0o600)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
        self._server = BlobServer(listener, self._answer)

    def close(self) -> None:
        """Nobody is answered any more."""
        self._server.close()
        with suppress(OSError):
            self._path.unlink()

    def _answer(self, who: str, words: Sequence[str], body: bytes) -> bytes:
        how, which, name = words
        last: FarcallError | TransientError = NotFoundError(f"{name} is in no place that this worker knows")
        for tier in self._tiers().get(which, ()):
            try:
                if how == "get":
                    return tier.get(name)
                put = getattr(tier, "put", None)
                if put is not None:
                    put(name, body)
                    return b""
            except (FarcallError, TransientError) as error:
                last = error
        raise last
