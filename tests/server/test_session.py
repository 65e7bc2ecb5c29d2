"""What a peer may do to the server: nothing that harms it or other peers, whatever it sends."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from farcall.spec.function import FunctionSpec, MethodSpec, Source
from farcall.wire import messages
from farcall.wire.frames import MAX_BODY, FrameEncoder
from tests.conftest import Installation
from tests.server.conftest import Peer, app_spec

Connect = Callable[[], Peer]


def open_values(server_pid: int) -> int:
    """How many descriptors of the memory files of these tests a server has; others come and go with its peers."""
    folder = Path(f"/proc/{server_pid}/fd")
    found = 0
    for name in os.listdir(folder):
        try:
            found += os.readlink(folder / name).startswith("/memfd:value-of-tests")
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


def failure(answer: object) -> messages.Failure:
    assert isinstance(answer, messages.Failed)
    return answer.failure


def outcome(answer: object) -> messages.Failure:
    assert isinstance(answer, messages.Outputs)
    assert answer.outputs[0].status == messages.PLATFORM_ERROR
    return msgspec.msgpack.decode(answer.outputs[0].data, type=messages.Failure)


@pytest.fixture
def peer(connect: Connect) -> Peer:
    """A peer that has said hello."""
    peer = connect()
    peer.hello()
    return peer


@pytest.fixture
def app(peer: Peer, request: pytest.FixtureRequest) -> tuple[str, str]:
    """Ids of an app of the peer's, and of its function."""
    ids = f"ap-{request.node.name}", f"fu-{request.node.name}"
    assert isinstance(peer.ask(messages.CreateApp(1, app_spec(*ids))), messages.Done)
    return ids


def status(connect: Connect) -> messages.StatusReport:
    """What another client is told: the server goes on."""
    peer = connect()
    peer.hello()
    answer = peer.ask(messages.ServerStatus(1))
    assert isinstance(answer, messages.Done)
    peer.sock.close()
    return msgspec.msgpack.decode(answer.body, type=messages.StatusReport)


def test_noise_is_answered_and_then_the_peer_is_given_up(connect: Connect, rng_bytes: bytes) -> None:
    peer = connect()
    with pytest.raises((EOFError, ConnectionError)):
        while True:
            peer.sock.sendall(b"\0\0\0\0" * 1000 + rng_bytes)
            while True:
                assert failure(peer.receive()).code == "protocol"
    assert status(connect).pid > 0


@pytest.fixture
def rng_bytes(seed: int) -> bytes:
    import random

    return random.Random(seed).randbytes(1000)


def test_half_a_frame_and_a_huge_claim_hold_nobody_up(connect: Connect) -> None:
    half, huge = connect(), connect()
    half.sock.sendall(FrameEncoder().encode(messages.ServerStatus(1))[:-1])
    huge.sock.sendall(((1 << 24) - 1).to_bytes(3, "little") + b"\0" + bytes(MAX_BODY))
    assert failure(huge.receive()).code == "protocol"
    assert status(connect).connections >= 2


def test_a_peer_of_an_unknown_protocol_is_told_so_at_every_request(connect: Connect) -> None:
    peer = connect()
    assert peer.hello(protocol=99).protocol == messages.PROTOCOL_VERSION
    refused = failure(peer.ask(messages.ServerStatus(7)))
    assert refused.code == "version"
    assert "protocol 99" in refused.message
    assert status(connect).pid > 0


def test_an_unknown_function_is_the_outcome_of_its_inputs(peer: Peer) -> None:
    submit = messages.Submit("fc-unknown", "fu-none", "", "remote", [messages.Input(0, b"x")])
    assert outcome(peer.ask(submit)).code == "not-found"


def test_an_input_is_taken_once(peer: Peer, app: tuple[str, str]) -> None:
    before = open_values(status_pid(peer))
    value = os.memfd_create("value-of-tests")
    submit = messages.Submit("fc-twice", app[1], "", "map", [messages.Input(0, b"x", 1)])
    peer.send(submit, (value,))
    assert outcome(peer.ask(submit, (value,))).code == "conflict"
    both = messages.Submit("fc-both", app[1], "", "map", [messages.Input(0, b"x", 1), messages.Input(0, b"x", 1)])
    assert outcome(peer.ask(both, (value, value))).code == "conflict"
    os.close(value)
    assert open_values(status_pid(peer)) == before + 1  # the one input that waits
    assert isinstance(peer.ask(messages.CancelCall(9, "fc-twice")), messages.Done)
    assert open_values(status_pid(peer)) == before


def status_pid(peer: Peer) -> int:
    answer = peer.ask(messages.ServerStatus(1))
    assert isinstance(answer, messages.Done)
    return msgspec.msgpack.decode(answer.body, type=messages.StatusReport).pid


def test_no_message_leaves_its_descriptors_behind(peer: Peer, app: tuple[str, str]) -> None:
    pid = status_pid(peer)
    before = open_values(pid)
    value = os.memfd_create("value-of-tests")
    one = [messages.Input(0, b"x", 1)]
    for message in (
        messages.Submit("fc-1", "fu-none", "", "remote", one),
        messages.Submit("fc-2", app[1], "no method", "remote", one),
        messages.Spawn(2, "fc-3", "fu-none", "", one),
        messages.Spawn(3, "fc-4", app[1], "no method", one),
        messages.ServerStatus(4),
        messages.Lookup(5, "fu-none"),
        messages.CreateApp(6, app_spec("ap-more", "fu-more")),
    ):
        peer.ask(message, (value,))
    # More of them than the inputs claim.
    peer.send(messages.Submit("fc-5", app[1], "", "map", one), (value, value, value))
    peer.ask(messages.CancelCall(7, "fc-5"))
    os.close(value)
    assert open_values(pid) == before


def test_a_number_of_descriptors_that_cannot_be_is_refused(peer: Peer, app: tuple[str, str]) -> None:
    value = os.memfd_create("value")
    inputs = [messages.Input(0, b"x", 2), messages.Input(1, b"x", -1)]
    refused = peer.ask(messages.Submit("fc-negative", app[1], "", "map", inputs), (value,))
    os.close(value)
    assert failure(refused).code == "protocol"


def test_what_is_no_memory_file_is_not_read(peer: Peer, app: tuple[str, str]) -> None:
    """A pipe would block the server, a sparse file fill its memory."""
    read, write = os.pipe()
    spawn = messages.Spawn(2, "fc-pipe", app[1], "", [messages.Input(0, b"x", 1)])
    assert failure(peer.ask(spawn, (read,))).code == "protocol"
    sparse = os.memfd_create("sparse")
    os.ftruncate(sparse, 2**40)
    spawn = messages.Spawn(3, "fc-sparse", app[1], "", [messages.Input(0, b"x", 1)])
    refused = failure(peer.ask(spawn, (sparse,)))
    assert refused.code == "resource-exhausted"
    assert "too large for spawn" in refused.message
    for fd in (read, write, sparse):
        os.close(fd)


def test_a_call_belongs_to_who_made_it(peer: Peer, app: tuple[str, str], connect: Connect) -> None:
    other = connect()
    other.hello()
    peer.send(messages.Submit("fc-mine", app[1], "", "map", [messages.Input(0, b"x")]))
    status_pid(peer)
    theft = messages.Submit("fc-mine", app[1], "", "map", [messages.Input(1, b"x")])
    assert outcome(other.ask(theft)).code == "conflict"


def test_a_spawned_call_takes_inputs_from_its_own_app_only(peer: Peer, app: tuple[str, str]) -> None:
    assert isinstance(peer.ask(messages.CreateApp(1, app_spec("ap-second", "fu-second"))), messages.Done)
    spawn = messages.Spawn(2, "fc-spawned", app[1], "", [messages.Input(0, b"x")])
    assert isinstance(peer.ask(spawn), messages.Done)
    forged = messages.Spawn(3, "fc-spawned", "fu-second", "", [messages.Input(1, b"x")])
    assert failure(peer.ask(forged)).code == "not-found"


def test_the_code_and_secrets_of_a_function_are_not_for_who_looks_it_up(peer: Peer, app: tuple[str, str]) -> None:
    """Code may be longer than a frame."""
    spec = app_spec(app[0], "fu-long")
    function = msgspec.structs.replace(
        spec.functions[0], source=Source("m", "f", pickled=b""), env={"SECRET": "do not tell"}
    )
    code = os.memfd_create("code")
    os.write(code, bytes(MAX_BODY + 1))
    create = messages.CreateApp(2, msgspec.structs.replace(spec, functions=(function,)), 1)
    assert isinstance(peer.ask(create, (code,)), messages.Done)
    os.close(code)
    answer = peer.ask(messages.Lookup(3, "fu-long"))
    assert isinstance(answer, messages.Done)
    assert b"do not tell" not in answer.body
    assert msgspec.msgpack.decode(answer.body, type=FunctionSpec).methods == (MethodSpec(""),)


def test_a_cancelled_spawned_call_no_longer_counts_as_work(peer: Peer, app: tuple[str, str]) -> None:
    peer.ask(messages.Spawn(2, "fc-cancelled", app[1], "", [messages.Input(n, b"x") for n in range(3)]))
    assert isinstance(peer.ask(messages.CancelCall(3, "fc-cancelled")), messages.Done)
    answer = peer.ask(messages.ServerStatus(4))
    assert isinstance(answer, messages.Done)
    (report,) = [
        report
        for report in msgspec.msgpack.decode(answer.body, type=messages.StatusReport).apps
        if report.app_id == app[0]
    ]
    assert report.pending == 0
    assert failure(peer.ask(messages.GetOutput(5, "fc-cancelled"))).code == "input-cancelled"


def test_a_peer_that_is_gone_leaves_nothing_behind(peer: Peer, app: tuple[str, str], connect: Connect) -> None:
    peer.send(messages.Submit("fc-left", app[1], "", "map", [messages.Input(n, b"x") for n in range(50)]))
    status_pid(peer)
    peer.sock.shutdown(socket.SHUT_RDWR)
    while any(report.app_id == app[0] for report in status(connect).apps):
        pass


def test_the_socket_is_for_its_owner_only(server: Installation, connect: Connect) -> None:
    peer = connect()
    path = Path(peer.sock.getpeername())
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
