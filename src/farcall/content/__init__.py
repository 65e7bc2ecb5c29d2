"""Content by hash: objects and trees in a store, how files get into it, and what is taken out of it again."""

from farcall.content.lease import Lease
from farcall.content.records import Record
from farcall.content.store import Store, StoreStatistics
from farcall.content.tree import Diff, Entry, Tree

__all__ = ["Diff", "Entry", "Lease", "Record", "Store", "StoreStatistics", "Tree"]
