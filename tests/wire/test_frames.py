"""The frame decoder: whatever arrives, in whatever pieces, it yields messages or typed errors and goes on."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farcall.errors import ProtocolError
from farcall.wire import messages
from farcall.wire.frames import HEADER, MAX_BODY, MAX_DESCRIPTORS, FrameDecoder, FrameEncoder

GOOD = messages.CancelCall(7, "fc-good", [1, 2, 3])


def frame(body: bytes, descriptors: int = 0) -> bytes:
    return (len(body) | descriptors << 24).to_bytes(HEADER, "little") + body


def feed(decoder: FrameDecoder, data: bytes) -> Iterator[tuple[Any, int]]:
    """What comes out when this data arrives."""
    decoder.add(data)
    while (taken := decoder.take()) is not None:
        yield taken


def decode(decoder: FrameDecoder, data: bytes, pieces: list[int]) -> list[Any]:
    """All that comes out when the data arrives in pieces of these lengths, then the rest at once."""
    out: list[Any] = []
    for length in pieces:
        out += [message for message, _ in feed(decoder, data[:length])]
        data = data[length:]
    return out + [message for message, _ in feed(decoder, data)]


inputs = st.builds(messages.Input, st.integers(0, 2**40), st.binary(max_size=200), st.integers(0, 1))
any_message = st.one_of(
    st.builds(messages.Submit, st.text(), st.text(), st.text(), st.just("map"), st.lists(inputs, max_size=8)),
    st.builds(messages.CancelCall, st.integers(0, 2**31), st.text(), st.none() | st.lists(st.integers(0, 100))),
    st.builds(messages.ServerStatus, st.integers(0, 2**31)),
    st.builds(messages.Hello, st.integers(0, 9), st.text(), st.just("client"), st.integers(0, 2**22)),
)


@given(st.lists(any_message, max_size=6), st.lists(st.integers(0, 64), max_size=30))
def test_messages_survive_any_fragmentation(sent: list[Any], pieces: list[int]) -> None:
    encoder = FrameEncoder()
    data = b"".join(encoder.encode(message) for message in sent)
    assert decode(FrameDecoder(messages.FromClient), data, pieces) == sent


@given(st.binary(max_size=400), st.lists(st.integers(0, 64), max_size=10))
def test_a_malformed_body_is_refused_and_the_next_frame_is_read(body: bytes, pieces: list[int]) -> None:
    got = decode(FrameDecoder(messages.FromClient), frame(body) + FrameEncoder().encode(GOOD), pieces)
    assert got[-1] == GOOD
    assert len(got) == 2
    assert isinstance(got[0], ProtocolError | msgspec.Struct)


@given(st.integers(MAX_BODY + 1, 2**24 - 1), st.integers(1, 5))
@settings(max_examples=20)
def test_an_oversized_frame_is_skipped_without_being_held(length: int, parts: int) -> None:
    decoder = FrameDecoder(messages.FromClient)
    data = length.to_bytes(HEADER, "little") + bytes(length) + FrameEncoder().encode(GOOD)
    step = len(data) // parts + 1
    got: list[Any] = []
    for start in range(0, len(data), step):
        got += [message for message, _ in feed(decoder, data[start : start + step])]
        assert decoder.pending <= MAX_BODY + HEADER
    assert isinstance(got[0], ProtocolError)
    assert str(MAX_BODY // 1024) in str(got[0]) or f"{MAX_BODY:,}" in str(got[0])
    assert got[1:] == [GOOD]


@given(st.binary(max_size=2000))
def test_noise_never_raises(noise: bytes) -> None:
    decoder = FrameDecoder(messages.FromRunner)
    for message, descriptors in feed(decoder, noise):
        assert isinstance(message, ProtocolError | msgspec.Struct)
        assert 0 <= descriptors <= 255


def test_too_many_descriptors_are_refused() -> None:
    data = frame(msgspec.msgpack.encode(GOOD), MAX_DESCRIPTORS + 1) + FrameEncoder().encode(GOOD)
    first, second = [message for message, _ in feed(FrameDecoder(messages.FromClient), data)]
    assert isinstance(first, ProtocolError)
    assert "descriptors" in str(first)
    assert second == GOOD


def test_a_message_for_the_other_side_is_refused() -> None:
    """A runner may not say Welcome, nor a client Loaded."""
    encoder = FrameEncoder()
    data = encoder.encode(messages.Loaded(1.0))
    assert isinstance(next(feed(FrameDecoder(messages.FromClient), data))[0], ProtocolError)
    assert next(feed(FrameDecoder(messages.FromRunner), data))[0] == messages.Loaded(1.0)


def test_a_frame_from_a_later_version_with_more_fields_is_read() -> None:
    body = msgspec.msgpack.encode([19, 5, "a field this version does not know", {"more": 1}])
    assert next(feed(FrameDecoder(messages.FromClient), frame(body)))[0] == messages.ServerStatus(5)


def test_a_message_too_large_for_a_frame_is_refused_where_it_is_sent() -> None:
    with pytest.raises(ProtocolError, match="Submit"):
        FrameEncoder().encode(messages.Submit("fc-1", "fu-1", "", "map", [messages.Input(0, bytes(MAX_BODY))]))
