"""What all messages between program, server and container have in common."""

from typing import Annotated

import msgspec

# Of one value. Checked where a message is decoded: whoever shares out a frame's descriptors relies on it.
DescriptorCount = Annotated[int, msgspec.Meta(ge=0, le=1)]


class Message(msgspec.Struct, array_like=True, gc=False):
    """Base of all messages: an array on the wire, to which later versions add at the end only."""
