"""What all messages between program, server and container have in common."""

import msgspec


class Message(msgspec.Struct, array_like=True, gc=False):
    """Base of all messages: an array on the wire, to which later versions add at the end only."""
