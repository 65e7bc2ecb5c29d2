"""Packets survive any cutting of the stream into pieces, and of the link into streams."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farcall.errors import ProtocolError
from farcall.link import packets
from farcall.link.packets import MAX_BODY, Kind, Packet, PacketDecoder, Session

NUMBERED = [kind for kind in Kind if kind <= Kind.BYE]


@given(
    st.lists(st.tuples(st.sampled_from(list(Kind)), st.integers(0, 2**32 - 1), st.binary(max_size=300))),
    st.lists(st.integers(1, 40), min_size=1),
)
def test_packets_come_out_as_they_went_in_however_the_stream_is_cut(
    sent: list[tuple[Kind, int, bytes]], lengths: list[int]
) -> None:
    stream = b"".join(packets.encode(*each) for each in sent)
    decoder, received, position, turn = PacketDecoder(), [], 0, 0
    while position < len(stream):
        length = lengths[turn % len(lengths)]
        received += decoder.add(stream[position : position + length])
        position, turn = position + length, turn + 1
    assert received == [Packet(*each) for each in sent]


@pytest.mark.parametrize(
    "stream", [b"SSH-2.0-OpenSSH\r\n", packets.encode(Kind.PING)[:5] + (MAX_BODY + 1).to_bytes(4, "little")]
)
def test_what_is_no_link_is_refused(stream: bytes) -> None:
    with pytest.raises(ProtocolError):
        PacketDecoder().add(stream)


class End:
    """One end of a link whose streams lose their ends: what it sent and what it got."""

    def __init__(self) -> None:
        self.session = Session(bytes(16))
        self.sent: list[bytes] = []
        self.got: list[bytes] = []
        self.line: list[bytes] = []  # on the stream, not arrived yet

    def send(self, body: bytes) -> None:
        self.sent.append(body)
        self.line.append(self.session.number(Kind.FRAME, 1, body))

    def take(self, stream: list[bytes]) -> None:
        for packet in PacketDecoder().add(b"".join(stream)):
            if self.session.receive(packet):
                self.got.append(packet.body)
            else:
                self.session.acknowledge(packets.count(packet.body))


@settings(max_examples=200)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 100), st.booleans()), max_size=40))
def test_nothing_is_lost_or_doubled_by_streams_that_are_cut(steps: list[tuple[bool, int, int, bool]]) -> None:
    """At each step an end sends some, and part of what is on the stream arrives; then the stream may be cut."""
    ends = End(), End()
    for number, (which, count, arrives, cut) in enumerate(steps):
        sender, receiver = ends[which], ends[not which]
        for each in range(count):
            sender.send(b"%d.%d" % (number, each))
        share = len(sender.line) * arrives // 100
        receiver.take(sender.line[:share])
        del sender.line[:share]
        if share and not cut:
            receiver.line.append(packets.encode(Kind.ACK, body=packets.counted(receiver.session.received)))
        if cut:
            hellos = [PacketDecoder().add(end.session.hello())[0] for end in ends]
            for end, hello in zip(ends, reversed(hellos), strict=True):
                end.line = end.session.resume(hello)
    for sender, receiver in (ends, ends[::-1]):
        receiver.take(sender.line)
        assert receiver.got == sender.sent
    for sender, receiver in (ends, ends[::-1]):
        sender.session.acknowledge(receiver.session.received)
        assert sender.session.kept_bytes == 0


def test_a_peer_of_another_session_or_version_is_refused() -> None:
    ours = Session(b"a" * 16)
    [hello] = PacketDecoder().add(Session(b"b" * 16).hello())
    with pytest.raises(ProtocolError, match="another session"):
        ours.resume(hello)
    with pytest.raises(ProtocolError, match="version 9"):
        ours.resume(hello._replace(channel=9))
    with pytest.raises(ProtocolError, match="does not begin"):
        ours.resume(Packet(Kind.ACK, 0, packets.counted(0)))


def test_more_cannot_be_acknowledged_than_was_sent() -> None:
    session = Session(bytes(16))
    session.number(Kind.OPEN, 1)
    session.acknowledge(1)
    with pytest.raises(ProtocolError):
        session.acknowledge(2)
    with pytest.raises(ProtocolError):
        session.acknowledge(0)
