"""What builds put into an object store, so that other machines need not build it."""

from __future__ import annotations

from collections.abc import Callable

from farcall.builder.images import IMAGES, PYTHONS, STEPS
from farcall.content.records import Record
from farcall.content.store import Store
from farcall.content.tiers import Fetched, Fetcher, Tier, WritableTier
from farcall.content.tiers.pusher import Pusher, pending
from farcall.errors import NotFoundError


def waiting(store: Store, tier: WritableTier) -> list[Record]:
    """The records that are to be pushed, in that order. Nobody is asked. Raises as `Store.records`."""
    found: list[Record] = []
    # Steps first, in the order in which they were done: what begins alike shares its packs.
    for kind in (STEPS, PYTHONS, IMAGES):
        found += (record for record in store.records(kind) if kind != STEPS or record.trees)
    return pending(store, tier.title, found)


def push(store: Store, tier: WritableTier, say: Callable[[str], None] = lambda text: None) -> int:
    """Push all that is waiting; returns how many records that were. `say` gets a line for each.

    What a garbage collection takes meanwhile is left out. Raises as `Pusher.push_record`.
    """
    pusher = Pusher(store, tier)
    done = 0
    try:
        for record in waiting(store, tier):
            try:
                pushed = pusher.push_record(record)
            except NotFoundError as error:
                say(f"{record.data.get('title') or record.key}: left out, {error}")
                continue
            done += 1
            say(f"{record.data.get('title') or record.key}: {pushed.sent_bytes / 2**20:.1f} MiB")
    finally:
        pusher.close()
    return done


def pull(store: Store, tier: Tier, image_id: str) -> Fetched:
    """Fetch an image, which stays in the store as one that was built here. Raises `NotFoundError` where the tier does
    not have it, and as `Fetcher.fetch_tree`."""
    fetcher = Fetcher(store, [tier])
    try:
        known = store.record(IMAGES, image_id)
        record = known or fetcher.record(IMAGES, image_id)
        if record is None:
            raise NotFoundError(f"{tier.title} has no image {image_id}. Where it was built, `farcall content push`")
        with store.lease("pull") as lease:
            for tree_id in record.trees:
                fetcher.fetch_tree(lease, tree_id)
            if known is None:  # else it may have been compiled here since
                store.put_record(IMAGES, image_id, trees=record.trees, data=record.data)
        return fetcher.statistics()
    finally:
        fetcher.close()
