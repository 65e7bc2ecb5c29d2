"""Peers: many machines that start from one image at the same time ask the object store for it once."""

import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from farcall.cluster.authority import Authority, new_key, peers_context, worker_context
from farcall.content import Store
from farcall.content.tiers import Fetcher, layout
from farcall.content.tiers import peers as peers_module
from farcall.content.tiers.circles import Circle, Circles, Peer
from farcall.content.tiers.exchange import BlobClient
from farcall.content.tiers.passing import Passing
from farcall.content.tiers.peers import Peers, homes
from farcall.content.tiers.store import StoreTier
from farcall.content.verify import verify
from farcall.errors import NotFoundError, PermissionDeniedError
from tests.content.tiers.conftest import HURRIED, Counting

NODES = 5


class Node:
    """A machine with a store and a certificate, among others."""

    def __init__(self, name: str, folder: Path, authority: Authority, upstream: Counting) -> None:
        folder.mkdir()
        self.name, self.folder, self.authority = name, folder, authority
        (folder / "certificate.pem").write_bytes(authority.issue(new_key(folder / "key.pem"), name))
        self.store = Store(folder / "store")
        self.circles = Circles(self.store)
        passing = Passing(StoreTier(self.store))
        self.peers = Peers(name, self.store, self.circles, passing, lambda in_stores: [upstream])
        self.peers.use(asking(authority, folder))
        listener = socket.create_server(("127.0.0.1", 0))
        self.peer = Peer(name, "127.0.0.1", listener.getsockname()[1])
        listening = peers_context(authority.certificate, folder / "certificate.pem", folder / "key.pem")
        self.peers.listen(listener, listening)
        self.fetcher = Fetcher(self.store, [self.peers, upstream], timing=HURRIED, threads=3)

    def fetch(self, tree_id: str) -> None:
        """All of a tree, every byte of which is right."""
        with self.store.lease("test") as lease:
            self.fetcher.fetch_tree(lease, tree_id)
            assert not verify(self.store).damaged

    def close(self) -> None:
        self.fetcher.close()
        self.peers.close()


def asking(authority: Authority, folder: Path | None = None) -> ssl.SSLContext:
    keys = (folder / "certificate.pem", folder / "key.pem") if folder is not None else (None, None)
    context = worker_context(authority.certificate, *keys)
    context.check_hostname = False
    return context


def admit(nodes: list[Node], tree_id: str) -> None:
    """These may have the tree, and know it."""
    for node in nodes:
        node.circles.set(tree_id, Circle(tuple(one.peer for one in nodes), True))


def content(tier: Counting) -> list[str]:
    """The packs and pieces that a tier was asked for."""
    return [name for name in tier.asked if name.startswith(("packs/", "pieces/"))]


@pytest.fixture
def nodes(
    tmp_path: Path, filled: Counting, tree_id: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[list[Node]]:
    for limit in ("CONNECT_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(peers_module, limit, 60.0)  # of a machine that does other things as well
    authority = Authority(tmp_path / "authority")
    made = [
        Node(f"wk-{number}", tmp_path / f"node-{number}", authority, filled)
        for number in range(getattr(request, "param", 2))
    ]
    admit(made, tree_id)
    yield made
    for node in made:
        node.close()


@pytest.mark.parametrize("nodes", [NODES], indirect=True)
def test_five_cold_nodes_fetch_each_blob_once(nodes: list[Node], filled: Counting, tree_id: str) -> None:
    begin = threading.Barrier(NODES)

    def fetch(node: Node) -> None:
        begin.wait(60)
        node.fetch(tree_id)

    with ThreadPoolExecutor(NODES) as pool:
        list(pool.map(fetch, nodes))
    asked = content(filled)
    assert len(asked) <= 1.3 * len(set(asked))
    peers = [node.peer for node in nodes]
    assert len({homes(name, peers)[0] for name in asked}) > 1, "the work is shared"


def test_who_comes_later_gets_all_from_those_who_have_it(nodes: list[Node], filled: Counting, tree_id: str) -> None:
    """Also what it is the home of itself."""
    nodes[0].fetch(tree_id)
    filled.asked.clear()
    nodes[1].fetch(tree_id)
    assert content(filled) == []
    received = nodes[1].fetcher.statistics().by_tier
    assert max(received, key=lambda title: received[title]) == "the other workers"


def test_what_has_arrived_of_a_large_object_is_given(nodes: list[Node], filled: Counting, tree_id: str) -> None:
    first, second = nodes
    large = next(entry for entry in first.fetcher.tree(tree_id) if entry.path.startswith(b"big/"))
    with first.store.lease("test") as lease, second.store.lease("test") as other_lease:
        wanted = first.fetcher.read(lease, tree_id, large.digest, 100, 1000)
        assert not first.store.has(large.digest), "only a piece of it is here"
        filled.asked.clear()
        assert second.fetcher.read(other_lease, tree_id, large.digest, 100, 1000) == wanted
    assert content(filled) == []


def test_peers_that_are_gone_are_done_without(nodes: list[Node], tree_id: str) -> None:
    nodes[1].peers.close()
    nodes[0].fetch(tree_id)


def test_no_connection_stays_to_one_that_is_gone_or_is_asked_nothing(
    nodes: list[Node], tree_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers come and go for months."""

    def connections() -> int:
        """Those of this process to the second node."""
        lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
        far_end = f":{nodes[1].peer.port:04X}"
        return sum(line.split()[2].endswith(far_end) and line.split()[9] != "0" for line in lines)

    nodes[0].fetch(tree_id)
    assert connections() > 0
    nodes[0].peers.keep_house()
    assert connections() > 0, "it may be asked for more in a moment"
    nodes[0].circles.set(tree_id, Circle((nodes[0].peer,), True))
    nodes[0].peers.keep_house()
    assert connections() == 0, "the server has said that it is gone"
    admit(nodes, tree_id)
    nodes[0].peers._ask(nodes[1].peer, tree_id, next(layout_names(nodes[0].store, tree_id)), "get")
    monkeypatch.setattr(peers_module, "IDLE_SECONDS", 0.0)
    nodes[0].peers.keep_house()
    assert connections() == 0


def test_a_peer_that_says_nothing_costs_its_time_once(
    nodes: list[Node], tree_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "ANSWER_SECONDS", 0.2)
    # It takes connections, as a process that is stopped does, and never says a word.
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute_peer = Peer("wk-1", "127.0.0.1", mute.getsockname()[1])
        monkeypatch.setattr(peers_module, "CONNECT_SECONDS", 0.2)
        nodes[0].circles.set(tree_id, Circle((nodes[0].peer, mute_peer), True))
        nodes[0].fetch(tree_id)


@pytest.mark.parametrize("nodes", [3], indirect=True)
def test_a_peer_with_wrong_bytes_is_not_believed(
    nodes: list[Node], tree_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = nodes[1]
    given: list[str] = []

    def get(name: str, upstream: object) -> bytes:
        given.append(name)
        return layout.encode_blob(b"something else")

    monkeypatch.setattr(wrong.peers._passing, "get", get)
    monkeypatch.setattr(wrong.peers._passing, "at_hand", lambda name: get(name, ()))
    nodes[0].fetch(tree_id)
    nodes[2].fetch(tree_id)
    assert given


def test_only_those_that_the_server_names_get_anything(
    nodes: list[Node], tree_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "ADMISSION_SECONDS", 0.1)
    giver, asker = nodes
    giver.fetch(tree_id)
    name = next(layout_names(giver.store, tree_id))
    assert asker.peers._ask(giver.peer, tree_id, name, "get")
    with pytest.raises(PermissionDeniedError, match="is not of tree"):
        asker.peers._ask(giver.peer, tree_id, "packs/ab/" + "0" * 62, "get")
    giver.circles.set(tree_id, Circle((giver.peer,), True))
    for how in ("get", "have"):
        with pytest.raises(PermissionDeniedError, match="the server has not said that wk-1 may have"):
            asker.peers._ask(giver.peer, tree_id, name, how)
    circle = asker.circles.get(tree_id)
    assert circle is not None
    for one in layout_names(giver.store, tree_id):
        if homes(one, circle.peers)[0] == giver.peer:  # what is at home with the asker it asks for further away
            with pytest.raises(NotFoundError, match="the other workers have no"):
                asker.peers.get(one)


def test_word_of_a_new_member_is_waited_for(nodes: list[Node], tree_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "ADMISSION_SECONDS", 60.0)
    giver, asker = nodes
    giver.fetch(tree_id)
    name = next(layout_names(giver.store, tree_id))
    giver.circles.set(tree_id, Circle((giver.peer,), True))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(asker.peers._ask, giver.peer, tree_id, name, "get")
        time.sleep(0.1)
        admit(nodes, tree_id)
        assert answer.result(60)


def layout_names(store: Store, tree_id: str) -> Iterator[str]:
    index = layout.stored_index(store, tree_id)
    assert index is not None
    return index.names()


def test_who_has_no_certificate_of_the_authority_gets_nothing(
    nodes: list[Node], tree_id: str, tmp_path: Path, filled: Counting
) -> None:
    giver = nodes[0]
    giver.fetch(tree_id)
    name = next(layout_names(giver.store, tree_id))
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    another = Authority(tmp_path / "another")
    (stranger / "certificate.pem").write_bytes(another.issue(new_key(stranger / "key.pem"), "wk-1"))
    for context in (asking(giver.authority), asking(giver.authority, stranger)):
        peers = Peers("wk-1", Store(tmp_path / "empty"), nodes[1].circles, nodes[1].peers._passing, lambda _: [])
        peers.use(context)
        with pytest.raises(OSError):
            peers._ask(giver.peer, tree_id, name, "get")
        peers.close()


@pytest.mark.parametrize("is_connected", [False, True], ids=["comes anew", "is connected"])
def test_one_that_was_removed_is_heard_no_further(
    nodes: list[Node], tree_id: str, monkeypatch: pytest.MonkeyPatch, is_connected: bool
) -> None:
    """Its certificate is still good."""
    monkeypatch.setattr(peers_module, "ADMISSION_SECONDS", 0.2)
    giver, removed = nodes
    giver.fetch(tree_id)
    name = next(layout_names(giver.store, tree_id))
    context = asking(removed.authority, removed.folder)

    def connect() -> ssl.SSLSocket:
        return context.wrap_socket(socket.create_connection((giver.peer.host, giver.peer.port), 60))

    def ask(connection: ssl.SSLSocket) -> bytes:
        client = BlobClient("giver", lambda: connection, 60.0)
        return client.ask("get", tree_id, name)

    if is_connected:
        connection = connect()
        assert ask(connection)
    giver.circles.set(tree_id, Circle((giver.peer,), True))
    if not is_connected:
        connection = connect()
    with connection:
        with pytest.raises(PermissionDeniedError, match="wk-1"):
            ask(connection)
        assert connection.recv(1) == b"", "the connection has ended"
    with connect() as silent:  # one that does not even ask
        assert silent.recv(1) == b""


def test_one_that_was_removed_keeps_nobody_else_out(
    nodes: list[Node], tree_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many connections it opens."""
    monkeypatch.setattr(peers_module, "MOST_STRANGERS", 2)
    monkeypatch.setattr(peers_module, "ADMISSION_SECONDS", 600.0)
    giver, removed = nodes
    giver.fetch(tree_id)
    giver.circles.set(tree_id, Circle((giver.peer,), True))
    context = asking(removed.authority, removed.folder)
    with ExitStack() as stack:
        opened = [
            stack.enter_context(context.wrap_socket(socket.create_connection((giver.peer.host, giver.peer.port), 60)))
            for _ in range(6)
        ]
        waiting = set(opened)
        while len(waiting) > 2:
            ended, _, _ = select.select(list(waiting), [], [], 60)
            assert ended, "those beyond the bound end at once"
            waiting -= {one for one in ended if one.recv(1) == b""}
        admit(nodes, tree_id)  # there is word of it, after all
        [first, _] = waiting
        assert BlobClient("giver", lambda: first, 60.0).ask("get", tree_id, next(layout_names(giver.store, tree_id)))


def test_one_that_has_another_s_address_is_not_asked(nodes: list[Node], tree_id: str) -> None:
    giver, asker = nodes
    giver.fetch(tree_id)
    posing = Peer("wk-7", giver.peer.host, giver.peer.port)
    with pytest.raises(OSError, match="is not wk-7"):
        asker.peers._ask(posing, tree_id, next(layout_names(giver.store, tree_id)), "get")


def test_a_peer_that_goes_moves_only_its_own_share() -> None:
    peers = [Peer(f"wk-{number}", "host", 1 + number) for number in range(10)]
    names = [f"packs/{number:02x}/cd" for number in range(256)]
    before = {name: homes(name, peers)[0] for name in names}
    gone = peers.pop(3)
    after = {name: homes(name, peers)[0] for name in names}
    assert all(after[name] == home for name, home in before.items() if home != gone)
    assert len(set(after.values())) == 9
