"""Where this worker gets content from, and whom it gives content to.

What is missing here is asked of other workers first, then of the object store, where this machine has one, and last of
the server. Processes of this machine that have no connection of their own ask this one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from farcall import errors
from farcall.cluster.tokens import split_address
from farcall.content.tiers import Tier, WritableTier
from farcall.content.tiers.circles import Circle, Circles, Peer
from farcall.content.tiers.local import SCHEME, LocalServer
from farcall.content.tiers.passing import Passing
from farcall.content.tiers.peers import Peers
from farcall.content.tiers.places import open_place
from farcall.content.tiers.store import StoreTier
from farcall.mounts.lazy.sources import WORKER, Source, set_sources

if TYPE_CHECKING:
    from farcall.content.store import Store
    from farcall.wire import cluster

NOWHERE = "off"  # in place of an address where this worker listens
_SOCKET = "worker.sock"
_PEERS, _STORES, _SERVER = "peers", "stores", "server"
_HOUSEKEEPING = 10.0  # seconds
_BACKLOG = 128


class Sharing:
    """All tiers of a worker. They outlive its connections; the server's is that of the current lease."""

    def __init__(self, me: str, store: Store, directory: Path, object_store: Source | None, listen: str) -> None:
        """`me` is the worker's id, and `directory` where its socket is made; `listen` is HOST:PORT, `NOWHERE`, or ""
        for any port of the address by which this worker reaches its server."""
        self.stores: list[WritableTier] = []
        if object_store is not None:
            self.stores.append(open_place(object_store.place, object_store.endpoint))
        self.port = 0  # where other workers reach it
        self._server: list[Tier] = []
        self._store = store
        self._listen = listen
        self._host = ""
        self._circles = Circles(store)
        self._passing = Passing(StoreTier(store))
        self.peers = Peers(me, store, self._circles, self._passing, self._further)
        self._local = LocalServer(directory / _SOCKET, self._by_name)
        place = f"{SCHEME}{directory / _SOCKET}"
        set_sources(store, [Source(f"{place}#{name}") for name in (_PEERS, _STORES, _SERVER)], WORKER)
        self._keeping = asyncio.get_running_loop().call_later(_HOUSEKEEPING, self._keep_house)

    def listen_beside(self, host: str, asking: ssl.SSLContext, listening: Callable[[], ssl.SSLContext]) -> None:
        """Give content to other workers, at `host` where nothing else is set, the address of this end of the connection
        to the server, and ask them for it. Raises ConnectionError where nobody can listen there."""
        if self._host == host:
            return
        self.peers.close()
        self._host, self.port = "", 0
        self.peers.use(asking)
        if self._listen == NOWHERE:
            self._host = host
            return
        at, port = split_address(self._listen) if self._listen else (host, 0)
        try:
            family = socket.AF_INET6 if ":" in at else socket.AF_INET
            listener = socket.create_server((at, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise errors.ConnectionError(
                f"this worker cannot listen on {at}:{port} for other workers: {error.strerror or error}. Choose "
                f"another --peer-listen, or `--peer-listen {NOWHERE}`"
            ) from error
        self._host, self.port = host, listener.getsockname()[1]
        self.peers.listen(listener, listening())

    def begin(self, server: Tier) -> None:
        """A new lease: the server can be asked, and says anew who may have what."""
        self._circles.clear()
        self._server = [server]

    def end(self) -> None:
        """The lease is over."""
        self._server = []
        self._circles.clear()

    def told(self, message: cluster.Sharers) -> None:
        """Which workers may have a tree."""
        peers = tuple(Peer(one.worker_id, one.host, one.port) for one in message.workers)
        self._circles.set(message.tree, Circle(peers, message.in_stores))

    def close(self) -> None:
        """Nothing is given any more, to nobody."""
        self._keeping.cancel()
        self._local.close()
        self.peers.close()
        try:
            set_sources(self._store, [], WORKER)
        except errors.FarcallError as error:
            logging.getLogger("farcall.cluster").warning("%s", error)

    def _further(self, in_stores: bool) -> Sequence[Tier]:
        return [*(self.stores if in_stores else ()), *self._server]

    def _by_name(self) -> Mapping[str, Sequence[Tier]]:
        return {_PEERS: [self.peers], _STORES: self.stores, _SERVER: self._server}

    def _keep_house(self) -> None:
        self._keeping = asyncio.get_running_loop().call_later(_HOUSEKEEPING, self._keep_house)
        self._passing.forget()
        self.peers.keep_house()
