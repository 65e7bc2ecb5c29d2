"""`Cluster`: the containers of one clustered call."""

from __future__ import annotations

from farcall.sdk.unimplemented import Placeholder

__all__ = ["Cluster"]


class Cluster(Placeholder):
    """The containers that run one clustered call together. Not available yet."""
