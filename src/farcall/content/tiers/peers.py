"""Peers as a tier: machines that start from the same trees, and have from each other what one of them has.

Each blob has a home among them, by rendezvous hashing: every machine finds the same one, and one that comes or goes
moves only its own share (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998). Only the
home fetches a blob from further away, once, while the others wait for it. So many machines that start from one image at
the same time ask an object store for it once.

Peers speak TLS, with certificates of one authority on both sides, and give a tree's content only to those that the
server has named for it. One that it names for nothing, as a worker that was removed, is told so, and its connection
ends: its certificate is good for years. What peers answer is believed by nobody.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from farcall.content import profiles
from farcall.content.attempts import TransientError
from farcall.content.store import Store
from farcall.content.tiers import layout
from farcall.content.tiers.circles import Circles, Peer
from farcall.content.tiers.exchange import BlobClient, BlobServer, name_of
from farcall.content.tiers.layout import BLOB_BYTES, Index
from farcall.content.tiers.passing import Passing
from farcall.content.tiers.tier import Tier
from farcall.errors import FarcallError, NotFoundError, PermissionDeniedError

SILENT_SECONDS = 30.0  # for which a peer that did not answer is not asked
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0  # for all of a blob: its home may have to wait for an object store itself
ADMISSION_SECONDS = 2.0  # that word of a new member may take
MOST_STRANGERS = 32  # connections of one name, of which there is no word yet: further ones are refused at once
IDLE_SECONDS = 60.0  # after which a connection is closed on which no peer was asked for anything
_HOMES = 2  # peers that are asked for a blob: its home, and the next one
_MOST = BLOB_BYTES + 4096  # bytes of a pack or piece, as it is sent
_SHARED = ("packs/", "pieces/")  # trees and indexes are the server's to give: an index decides what belongs to a tree


def homes(name: str, peers: Sequence[Peer]) -> list[Peer]:
    """The peers that give something, the one that a blob is at home with first, then those that take its place."""
    listening = (peer for peer in peers if peer.port)
    return sorted(listening, key=lambda peer: hashlib.sha256(f"{peer.name} {name}".encode()).digest())


class Peers:
    """This machine among its peers: as a tier that asks them, and, once it listens, as one of them."""

    title = "the other workers"

    def __init__(
        self, me: str, store: Store, circles: Circles, passing: Passing, further: Callable[[bool], Sequence[Tier]]
    ) -> None:
        """`me` is this machine's name among them; `further` says which tiers are behind the peers, in order, for a tree
        that object stores may have, or for another: those that are believed when they say what belongs to a tree."""
        self._me = me
        self._store = store
        self._circles = circles
        self._passing = passing
        self._further = further
        self._context: ssl.SSLContext | None = None
        self._server: BlobServer | None = None
        self._lock = threading.Lock()
        self._clients: dict[Peer, BlobClient] = {}
        self._silent: dict[Peer, float] = {}  # until when
        self._strangers = Counter[str]()  # by name

    def use(self, context: ssl.SSLContext) -> None:
        """Ask peers with this machine's certificate; `context` has the authority that theirs must be of, too."""
        self._context = context

    def listen(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        """Give peers what the server allows them. `context` must require certificates."""
        self._server = BlobServer(listener, self._answer, context, self._admits)

    def close(self) -> None:
        """Nothing is given any more, and nobody asked."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._context = None
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    def keep_house(self) -> None:
        """Lets go of connections that are not used, and of peers that the server names no more. To be called now and
        then."""
        members = self._circles.members()
        with self._lock:
            gone = [self._clients.pop(peer) for peer in list(self._clients) if peer not in members]
            self._silent = {peer: until for peer, until in self._silent.items() if peer in members}
            clients = list(self._clients.values())
        for client in gone:
            client.close()
        for client in clients:
            client.close_idle(IDLE_SECONDS)

    # --- asking

    def get(self, name: str) -> bytes:
        """Never raises `TransientError`: what peers do not give, others are asked for at once."""
        tree_id = self._circles.find(name) if name.startswith(_SHARED) else ""
        circle = self._circles.get(tree_id)
        if circle is not None and len(circle.peers) > 1:
            for peer in homes(name, circle.peers)[:_HOMES]:
                if peer.name == self._me:
                    with suppress(FarcallError, TransientError):
                        return self._passing.get(name, self._upstream(tree_id))
                    break  # it was asked for further away, too
                try:
                    return self._ask(peer, tree_id, name, "get")
                except (FarcallError, TransientError):  # some of which are OSErrors, too
                    break
                except OSError:
                    continue
        raise NotFoundError(f"{self.title} have no {name}")

    def at_hand(self, tree_id: str, name: str) -> bytes:
        """What one of the next homes has at hand: this one may be new, and the others have it all."""
        circle = self._circles.get(tree_id)
        others = [peer for peer in homes(name, circle.peers) if peer.name != self._me] if circle is not None else []
        for peer in others[:_HOMES]:
            with suppress(OSError, FarcallError, TransientError):
                return self._ask(peer, tree_id, name, "have")
        raise NotFoundError(f"{self.title} have no {name}")

    def _ask(self, peer: Peer, tree_id: str, name: str, how: str) -> bytes:
        """Raises OSError where it does not answer, and then is not asked for a while."""
        with self._lock:
            now = time.monotonic()
            until = self._silent.get(peer)
            if until is not None:
                if until > now:
                    raise OSError(f"{peer.name} did not answer a moment ago")
                self._silent[peer] = now + SILENT_SECONDS  # one tries, the others go on without it
            client = self._clients.get(peer)
            if client is None:
                client = BlobClient(f"worker {peer.name}", lambda: self._connect(peer), ANSWER_SECONDS)
                self._clients[peer] = client
        try:
            data = client.ask(how, tree_id, name, most=_MOST)
        except FarcallError:  # some of which are OSErrors, too
            self._answered(peer)
            raise
        except OSError:
            with self._lock:
                self._silent[peer] = time.monotonic() + SILENT_SECONDS
            raise
        self._answered(peer)
        return data

    def _answered(self, peer: Peer) -> None:
        with self._lock:
            self._silent.pop(peer, None)

    def _connect(self, peer: Peer) -> socket.socket:
        context = self._context
        if context is None:
            raise OSError("this machine asks nobody")
        plain = socket.create_connection((peer.host, peer.port), CONNECT_SECONDS)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = context.wrap_socket(plain)
        except BaseException:
            plain.close()
            raise
        if name_of(connection) != peer.name:
            connection.close()
            raise ssl.SSLError(f"who answers at {peer.host}:{peer.port} is not {peer.name}")
        return connection

    # --- answering

    def _admits(self, who: str) -> bool:
        if self._circles.knows(who, 0):
            return True
        with self._lock:
            if self._strangers[who] >= MOST_STRANGERS:
                return False
            self._strangers[who] += 1
        try:
            return self._circles.knows(who, ADMISSION_SECONDS)
        finally:
            with self._lock:
                self._strangers[who] -= 1
                self._strangers += Counter[str]()  # without those of whom there are none

    def _answer(self, who: str, words: Sequence[str], body: bytes) -> bytes:
        how, tree_id, name = words
        if not self._circles.admits(who, tree_id, ADMISSION_SECONDS):
            raise PermissionDeniedError(f"the server has not said that {who} may have tree {tree_id}")
        if not self._circles.has(tree_id, name, self._index) and not (
            profiles.receive(self._store, self._further(True), tree_id) and self._circles.has(tree_id, name)
        ):
            raise PermissionDeniedError(f"{name} is not of tree {tree_id}")
        return self._passing.at_hand(name) if how == "have" else self._passing.get(name, self._upstream(tree_id))

    def _upstream(self, tree_id: str) -> list[Tier]:
        circle = self._circles.get(tree_id)
        return [_AtHand(self, tree_id), *self._further(circle is not None and circle.in_stores)]

    def _index(self, tree_id: str) -> Index | None:
        """What the server says that belongs to a tree, to which this machine has not come yet itself."""
        for tier in self._further(False):
            with suppress(FarcallError, TransientError):
                index = layout.open_index(tree_id, tier.get(layout.index_name(tree_id)))
                layout.store_index(self._store, tree_id, index)
                return index
        return None


class _AtHand:
    """What other peers have, for one that is the home of it."""

    title = Peers.title

    def __init__(self, peers: Peers, tree_id: str) -> None:
        self._peers = peers
        self._tree_id = tree_id

    def get(self, name: str) -> bytes:
        return self._peers.at_hand(self._tree_id, name)
