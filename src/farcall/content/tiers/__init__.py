"""Tiers: where content comes from that the local store does not have, and where it is put for others.

A `Tier` has blobs by name, of a few MiB at most; `layout` says which blobs a tree consists of. A `Fetcher` brings what
is missing into the local store: from tiers in order, checked, once however many want it.
"""

from farcall.content.tiers.fetcher import Fetched, Fetcher
from farcall.content.tiers.tier import Tier, WritableTier

__all__ = ["Fetched", "Fetcher", "Tier", "WritableTier"]
