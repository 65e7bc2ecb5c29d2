"""Messages about stored secrets, program to server. A container may send none of them."""

from typing import Literal

import msgspec

from farcall.wire.message import Message


class PutSecret(Message, tag=100):
    """Store a secret. Answer: Done, body a SecretReport.

    Where there is one of that name: "never" is refused, "replace" leaves nothing of the old one, and "merge" keeps its
    other values. "merge" is refused where there is none.
    """

    seq: int
    name: str
    values: dict[str, str]
    existing: Literal["never", "replace", "merge"] = "never"


class DeleteSecret(Message, tag=101):
    """Delete a stored secret, for good. Answer: Done."""

    seq: int
    name: str


class ListSecrets(Message, tag=102):
    """Ask for all stored secrets, without their values. Answer: Done, body a list of SecretReport, oldest first."""

    seq: int


class ReadSecret(Message, tag=103):
    """Ask for a stored secret's values, to build an image with them. Answer: Done, body a dict of str to str."""

    seq: int
    name: str
    required_keys: tuple[str, ...] = ()


class SecretReport(msgspec.Struct, frozen=True):
    """A stored secret, without its values. Times are seconds since the epoch."""

    secret_id: str  # "st-..."
    name: str
    keys: list[str]
    created_at: float
    updated_at: float
