"""What the workers' port answers, over real TLS."""

import asyncio
import os
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from farcall import errors
from farcall.cluster import greeting, join
from farcall.cluster import port as port_module
from farcall.cluster.authority import SERVER_NAME, Authority, fingerprint, new_key, unverified_context, worker_context
from farcall.link.stream import SocketStream
from farcall.spec.function import FunctionSpec, Source, TreeRef
from farcall.version import __version__
from farcall.wire.messages import PROTOCOL_VERSION
from farcall.wire.workers import Enroll, Enrolled, Greet, Greeting, Offer
from farcall.worker.container import End
from farcall.worker.worker import Given
from tests.cluster.listening import LEASE, Port, Run

CURVE = bytes.fromhex("06082a8648ce3d030107")  # the name of that of our keys, in a certificate
BOTH_LOOPS = pytest.mark.parametrize(
    "port", [uvloop.new_event_loop, asyncio.new_event_loop], indirect=True, ids=["uvloop", "asyncio"]
)


def test_who_asks_gets_the_authority_s_certificate(port: Run) -> None:
    async def test(port: Port) -> None:
        greeted = await join._ask(port.listener.address, unverified_context(), Greet(), Greeting, None)
        assert fingerprint(greeted.certificate) == port.authority.fingerprint

    port(test)


def test_versions_that_do_not_understand_each_other(port: Run) -> None:
    async def test(port: Port) -> None:
        with pytest.raises(errors.VersionError, match="install that one there"):
            await port.enroll("old", PROTOCOL_VERSION - 2)
        with pytest.raises(errors.VersionError, match="install the worker's here"):
            await port.enroll("new", PROTOCOL_VERSION + 1)
        assert (await port.enroll("before", PROTOCOL_VERSION - 1)).worker_id.startswith("wk-")
        with pytest.raises(errors.VersionError, match="install that one there"):
            await port.attach("before", protocol=PROTOCOL_VERSION - 2)
        assert not port.host.joined
        assert (await port.attach("before", protocol=PROTOCOL_VERSION - 1)).lease == LEASE

    port(test)


def test_a_name_that_another_worker_has(port: Run) -> None:
    async def test(port: Port) -> None:
        await port.enroll("one")
        with pytest.raises(errors.AlreadyExistsError, match="--name"):
            await port.enroll("one")

    port(test)


@pytest.mark.parametrize("how", ["none", "unexpected key"])
def test_a_request_for_no_certificate_takes_no_name(port: Run, tmp_path: Path, how: str) -> None:
    async def test(port: Port) -> None:
        token = port.token()
        request = b"none"
        if how != "none":
            found = ssl.PEM_cert_to_DER_cert(new_key(tmp_path / "key").decode().replace(" REQUEST", ""))
            assert CURVE in found
            found = found.replace(CURVE, CURVE[:-1] + b"\x7f")  # which nobody knows
            request = ssl.DER_cert_to_PEM_cert(found).replace("CERTIFICATE", "CERTIFICATE REQUEST").encode()
        asked = Enroll(PROTOCOL_VERSION, __version__, token.token_id, token.secret, "one", request)
        with pytest.raises(errors.InvalidError, match="no request for a certificate"):
            await join._ask(
                port.listener.address, worker_context(port.authority.certificate), asked, Enrolled, SERVER_NAME
            )
        assert port.listener.registry.workers == []
        await port.enroll("one")

    port(test)


@pytest.mark.parametrize("lacking", ["workers.json", "tokens.json"])
def test_a_worker_that_could_not_be_written_down_takes_no_name(port: Run, lacking: str) -> None:
    """As on a full disk. It may join when there is room."""

    async def test(port: Port) -> None:
        blocked = port.folder / "cluster" / f".{lacking}.{os.getpid()}"  # where it is written first
        asked = port.token()
        blocked.mkdir()
        enroll = Enroll(PROTOCOL_VERSION, __version__, asked.token_id, asked.secret, "one", new_key(port.folder / "k"))
        context = worker_context(port.authority.certificate)
        with pytest.raises(errors.FarcallError, match=lacking):
            await join._ask(port.listener.address, context, enroll, Enrolled, SERVER_NAME)
        blocked.rmdir()
        assert port.listener.registry.workers == []
        await port.enroll("one")

    port(test)


def test_what_could_not_be_written_down_of_a_worker_has_not_happened(port: Run) -> None:
    async def test(port: Port) -> None:
        await port.enroll("one")
        registry = port.listener.registry
        blocked = port.folder / "cluster" / f".workers.json.{os.getpid()}"
        blocked.mkdir()
        with pytest.raises(errors.ContentError):
            port.listener.remove(registry.find("one"))
        with pytest.raises(errors.ContentError):
            registry.drain(registry.find("one"), draining=True)
        assert not registry.find("one").is_draining
        blocked.rmdir()
        await port.attach("one")
        port.listener.remove(registry.find("one"))
        assert registry.workers == []

    port(test)


def test_a_certificate_of_another_authority(port: Run, tmp_path: Path) -> None:
    """Whoever signs its own gets no answer; and a worker says nothing to a server that it has not joined."""

    async def test(port: Port) -> None:
        await port.enroll("one")
        other = Authority(tmp_path / "other")
        forged = other.issue(new_key(tmp_path / "one.key"), port.listener.registry.workers[0].worker_id)
        (tmp_path / "one.pem").write_bytes(forged)
        with pytest.raises((errors.FarcallError, OSError)):
            await port.attach("one")
        assert not port.host.joined
        with pytest.raises(errors.AuthError, match="is not the server that this worker joined"):
            await join._ask(port.listener.address, worker_context(other.certificate), Greet(), Greeting, SERVER_NAME)

    port(test)


def test_only_who_has_a_certificate_of_a_known_worker_gets_in(port: Run) -> None:
    async def test(port: Port) -> None:
        enrolled = await port.enroll("one")
        with pytest.raises(errors.AuthError, match="show its certificate"):
            await port.attach("one", certified=False)
        assert (await port.attach("one")).lease == LEASE
        port.listener.registry.remove(port.listener.registry.find(enrolled.worker_id))
        with pytest.raises(errors.AuthError, match="Join again"):
            await port.attach("one")

    port(test)


@BOTH_LOOPS
@pytest.mark.parametrize("shakes_hands", [False, True], ids=["silent", "after the handshake"])
def test_who_holds_connections_open_keeps_nobody_out(
    port: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, shakes_hands: bool
) -> None:
    """Without a word, for as long as it is let; a worker that is connected stays so, and the log says it once."""
    monkeypatch.setattr(port_module, "MOST_UNKNOWN", 5)
    monkeypatch.setattr(port_module, "HANDSHAKE_SECONDS", 600.0)
    monkeypatch.setattr(greeting, "SECONDS", 600.0)

    async def test(port: Port) -> None:
        await port.enroll("one")
        await port.attach("one")
        host, at = port.listener.address.split(":")
        context = unverified_context() if shakes_hands else None
        silent = [await asyncio.open_connection(host, int(at), ssl=context) for _ in range(20)]
        for reader, _ in silent[:15]:
            with suppress(OSError):
                assert await reader.read() == b"", "the oldest end"
        await port.enroll("two")
        assert (await port.attach("two")).lease == LEASE
        for _, writer in silent:
            writer.close()
        said = [record for record in caplog.records if "have not said who they are" in record.message]
        assert len(said) == 1 and "127.0.0.1" in said[0].message

    port(test)


@BOTH_LOOPS
def test_one_address_with_many_connections_costs_another_none(port: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is slow, and was here before them."""
    monkeypatch.setattr(port_module, "MOST_UNKNOWN", 5)
    monkeypatch.setattr(port_module, "HANDSHAKE_SECONDS", 600.0)

    async def test(port: Port) -> None:
        host, at = port.listener.address.split(":")
        slow = await asyncio.get_running_loop().create_connection(
            lambda: SocketStream(), host, int(at), local_addr=("127.0.0.2", 0)
        )
        many = [await asyncio.open_connection(host, int(at)) for _ in range(20)]
        for reader, _ in many[:15]:
            with suppress(OSError):
                assert await reader.read() == b""
        assert not slow[0].is_closing()
        _, stream = slow
        upgraded = await asyncio.get_running_loop().start_tls(
            slow[0], stream, unverified_context(), server_hostname="", ssl_handshake_timeout=60
        )
        assert upgraded is not None
        upgraded.write(greeting.encode(Greet()))
        greeted = await greeting.receive(stream, Greeting)
        assert fingerprint(greeted.certificate) == port.authority.fingerprint
        upgraded.abort()
        for _, writer in many:
            writer.close()

    port(test)


ESCAPE = "\x1b]0;mine\x07"


@pytest.mark.parametrize(
    "said",
    [
        {"region": ESCAPE},
        {"labels": {ESCAPE: "1"}},
        {"labels": {"disk": ESCAPE}},
        {"labels": {str(number): "" for number in range(1000)}},
        {"version": ESCAPE},
        {"offer": Offer(2000, 1024, 1024, ((ESCAPE, (0,), 1024),))},
    ],
    ids=["region", "label", "label's value", "labels", "version", "GPU"],
)
def test_a_worker_that_would_speak_to_terminals_is_refused(port: Run, said: dict[str, Any]) -> None:
    """Whatever its own `farcall worker join` makes of it."""

    async def test(port: Port) -> None:
        await port.enroll("one")
        with pytest.raises(errors.InvalidError, match="worker") as refused:
            await port.attach("one", **said)
        assert str(refused.value).isprintable()
        assert not port.host.joined

    port(test)


def test_a_worker_that_another_server_refuses_stays_what_it_was(port: Run, tmp_path: Path) -> None:
    async def test(port: Port) -> None:
        membership = join.Membership(tmp_path / "worker")
        try:
            joined = await membership.enroll(port.token(), "one", port.listener.address)
            files = {path.name: path.read_bytes() for path in membership.directory.iterdir()}
            with pytest.raises(errors.AlreadyExistsError):
                await membership.enroll(port.token(), "one", port.listener.address)
            assert {path.name: path.read_bytes() for path in membership.directory.iterdir()} == files
            assert membership.identity == joined
            membership.context()
            new_key(membership.directory / "worker.key")  # as a copy that was put together wrongly has it
            with pytest.raises(errors.AuthError, match="join again with a new token"):
                membership.context()
        finally:
            membership.close()

    port(test)


class Waiting:
    """A pool that waits for its container."""

    def __init__(self) -> None:
        self.end: asyncio.Future[End] = asyncio.get_running_loop().create_future()

    def on_gone(self, container: Any, end: End, *_: Any) -> None:
        self.end.set_result(end)


@pytest.mark.parametrize("failure", [None, OSError("no descriptor is left")], ids=["no tree", "no descriptor"])
def test_a_container_that_cannot_be_asked_for_has_an_end(port: Run, failure: Exception | None) -> None:
    """As its tree is not there, or for what nobody has thought of."""

    async def test(port: Port) -> None:
        async def given(function: Any) -> Any:
            if failure is not None:
                raise failure
            return Given(None, ()), {}

        port.host.given = given  # type: ignore[method-assign]
        await port.enroll("one")
        await port.attach("one")
        [machine] = port.host.joined
        pool = Waiting()
        tree = TreeRef("0" * 64, "/root")
        function = FunctionSpec("fu-1", "f", Source("m", "f"), (), trees=(tree,))
        machine.start("ta-1", "ap-1", function, b"", pool)
        end = await asyncio.wait_for(pool.end, 30)
        assert isinstance(end.error, errors.NotFoundError if failure is None else errors.InternalError)
        assert machine.containers == []

    port(test)


def test_a_container_whose_worker_lets_go_of_it_has_an_end(port: Run) -> None:
    """Without a word: it could not even take the request up."""

    async def test(port: Port) -> None:
        async def given(function: Any) -> Any:
            return Given(None, ()), {}

        port.host.given = given  # type: ignore[method-assign]
        await port.enroll("one")
        await port.attach("one")
        [machine] = port.host.joined
        pool = Waiting()
        mirror = machine.start("ta-1", "ap-1", FunctionSpec("fu-1", "f", Source("m", "f"), ()), b"", pool)
        while mirror.way._channel is None:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0)
        mirror.way._channel.finish()  # as when the other end's CLOSE has come
        assert (await asyncio.wait_for(pool.end, 30)).lost
        assert machine.containers == []

    port(test)


def test_what_is_no_message_is_refused_with_a_word(port: Run) -> None:
    async def test(port: Port) -> None:
        stream = await join._connect(port.listener.address, unverified_context(), None)
        asked = greeting.encode(Enroll(PROTOCOL_VERSION, __version__, "wt-1", "secret", "name", b""))
        stream.write(asked.replace(b"name", b"\xff\xff\xff\xff"))
        with pytest.raises(errors.ProtocolError, match="no known message"):
            await greeting.receive(stream, Greeting)
        await stream.close()

    port(test)


def test_what_nobody_has_asked_for_waits_in_the_kernel(port: Run) -> None:
    async def test(port: Port) -> None:
        streams: list[SocketStream] = []
        server = await asyncio.get_running_loop().create_server(lambda: SocketStream(streams.append), "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        data = bytes(1 << 20)
        sent = 0
        with suppress(TimeoutError):
            while sent < 256:
                writer.write(data)
                await asyncio.wait_for(writer.drain(), 1)
                sent += 1
        assert sent < 256, "it took all that came"
        taken = 0
        while taken < (sent + 1) * len(data):
            taken += len(await asyncio.wait_for(streams[0].readexactly(len(data)), 30))
        writer.close()
        server.close()

    port(test)


def test_a_lease_that_is_over_is_not_gone_on_with(port: Run) -> None:
    async def test(port: Port) -> None:
        await port.enroll("one")
        await port.attach("one")
        [machine] = port.host.joined
        with pytest.raises(errors.ConnectionLostError, match="lease"):
            await port.attach("one", resumes=True, session=b"t" * 16)
        assert (await port.attach("one", resumes=True)).lease == LEASE
        assert port.host.joined == [machine] and not port.host.lost
        await port.attach("one", session=b"u" * 16)  # the worker was started again
        assert port.host.lost == [machine]

    port(test)
