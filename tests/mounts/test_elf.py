"""What a program or a library says of what it needs."""

import os
import sys

import pytest

from farcall.mounts.lazy import elf

PROGRAM = os.path.realpath(sys.executable)


def needed(data: bytes) -> list[bytes]:
    found = elf.parse(data[: elf.HEAD_BYTES])
    assert found is not None
    dynamic = data[found.dynamic : found.dynamic + found.dynamic_size]
    return [data[place : data.index(b"\0", place)] for place in elf.names_needed(found, dynamic)]


def test_a_program_names_what_it_needs() -> None:
    with open(PROGRAM, "rb") as file:
        data = file.read()
    assert b"libc.so.6" in needed(data)
    found = elf.parse(data)
    assert found is not None
    assert any(segment.is_writable for segment in found.segments)
    assert all(segment.offset + segment.size <= len(data) for segment in found.segments)


@pytest.mark.parametrize(
    "head", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(100), b"\x7fELF\x02\x01", b"\xff" * 4096]
)
def test_what_is_none_needs_nothing(head: bytes) -> None:
    assert elf.parse(head) is None


def test_what_is_damaged_needs_nothing_or_anything() -> None:
    with open(PROGRAM, "rb") as file:
        head = file.read(elf.HEAD_BYTES)
    for place in range(16, 300):
        found = elf.parse(head[:place] + b"\xff" * 8 + head[place + 8 :])
        if found is not None:
            assert found.dynamic_size <= elf.MOST_DYNAMIC_BYTES
            elf.names_needed(found, os.urandom(160))
    assert elf.parse(head[:100]) is None, "it ends within the list of segments"
