"""What a tier is."""

from typing import Protocol

MAX_BLOB_BYTES = 256 << 20  # of a blob; only encoded trees and indexes of millions of files come near it


class Tier(Protocol):
    """A place that has blobs by name. Methods block, and any number of threads may call them at once.

    What a tier answers is believed by nobody: whoever asks checks it.
    """

    @property
    def title(self) -> str:
        """What it is, for messages: "the object store s3://bucket"."""
        ...

    def get(self, name: str) -> bytes:
        """The blob of that name, a path like "packs/ab/cdef".

        Raises `NotFoundError` where the tier does not have it, `TransientError` for what may pass (a time limit, an
        overload, a broken connection), and another `FarcallError`, that says what to do, for what will not.
        """
        ...


class WritableTier(Tier, Protocol):
    """A tier that content can be put into."""

    def put(self, name: str, data: bytes) -> None:
        """Put a blob there, in place of one of that name: others find all of it or nothing. Raises as `get` does."""
        ...
