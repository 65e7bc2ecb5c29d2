"""Messages that bring content to a server that is on another machine than its client's files."""

from __future__ import annotations

import msgspec

from farcall.wire.message import DescriptorCount, Message

PART_BYTES = 4 << 20  # the most that one part has
MESSAGE_BYTES = 128 * 1024  # the most that the parts of one AddContent have in its frame


class OfferTree(Message, tag=160):
    """Here is a tree: which of its objects are missing there? Answer: Done, body a list of their digests; when none is,
    the tree has been added. `tree` is encoded; where `descriptors` is 1 it is b"" and rides along as a memory file.

    What is there is kept until `ReleaseContent`, or the end of the connection.
    """

    seq: int
    tree: bytes
    descriptors: DescriptorCount = 0


class ContentPart(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of an object from `offset` on: `data`, or, where `descriptors` is 1, a memory file that rides along. The
    parts of an object of `size` bytes come in order, each of the same connection."""

    digest: bytes
    size: int
    offset: int
    data: bytes
    descriptors: DescriptorCount = 0


class AddContent(Message, tag=161):
    """Add objects that were missing. Each is checked against its digest before it is one. Answer: Done."""

    seq: int
    parts: list[ContentPart]


class ReleaseContent(Message, tag=162):
    """What was offered and added need not be kept any longer for its own sake. Answer: Done."""

    seq: int
