"""Start profiles: in which order starts of an image have opened its files, so that the next one need not wait for each.

A profile is a file beside the tree that it is of, `profiles/<tree id>`, and goes with it. It is a hint, never believed:
what cannot be read is no profile. Machines exchange profiles through the tiers that have their content.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress

import msgspec

from farcall.content.attempts import TransientError
from farcall.content.disk import disk_error, write_file
from farcall.content.store import Store
from farcall.content.tiers import Tier, WritableTier
from farcall.content.tiers.layout import (
    BLOB_BYTES,
    Pack,
    check_pack,
    decode_blob,
    encode_blob,
    pack_bytes,
    pack_up,
)
from farcall.content.tree import DIGEST_BYTES
from farcall.errors import CorruptedError, FarcallError

WHOLE = -1  # in place of the number of a piece
MAX_OPENED = 20_000  # of a profile
_MAX_BYTES = 4 * MAX_OPENED * DIGEST_BYTES  # of an encoded one
_VERSION = 1
_PACK_BYTES = 1 << 20  # of a pack of what starts open: the first is here soon, and what it takes to read more is little
_MOST_PACKS = 96  # of a profile; where there are more, all are made anew


class Profile(msgspec.Struct, frozen=True):
    """What starts have opened, in the order of the first time: objects, and of large ones the pieces that were read, by
    number; `WHOLE` for an object as a whole.

    The small ones may be in `packs` of their own, in this order, beside those of the tree's index: what a start needs
    is then a few blobs, with nothing else in them."""

    opened: tuple[tuple[bytes, int], ...] = ()
    version: int = _VERSION
    packs: tuple[Pack, ...] = ()

    @property
    def objects(self) -> tuple[bytes, ...]:
        """The objects, each once."""
        return tuple(dict.fromkeys(digest for digest, _ in self.opened))

    def merged(self, other: Profile) -> Profile:
        """With what other starts have opened, in their order, behind what is known."""
        opened = tuple(dict.fromkeys((*self.opened, *other.opened)))[:MAX_OPENED]
        return Profile(opened, packs=tuple(dict.fromkeys((*self.packs, *other.packs))))


def path_of(store: Store, tree_id: str) -> str:
    """Where the profile of a tree is, or would be."""
    return f"{store.root}/profiles/{tree_id}"


def read(store: Store, tree_id: str) -> Profile:
    """The profile of a tree; an empty one where there is none."""
    try:
        with open(path_of(store, tree_id), "rb") as file:
            return decode(file.read())
    except OSError:
        return Profile()


def profiled_trees(store: Store) -> list[str]:
    """The trees that have a profile."""
    try:
        return os.listdir(f"{store.root}/profiles")
    except FileNotFoundError:
        return []


def decode(data: bytes) -> Profile:
    """A profile from its bytes; an empty one from what is none."""
    try:
        found = msgspec.msgpack.decode(data, type=Profile)
        for pack in found.packs:
            check_pack(pack, "a start profile")
    except (msgspec.DecodeError, CorruptedError):
        return Profile()
    if found.version != _VERSION or any(len(digest) != DIGEST_BYTES for digest, _ in found.opened):
        return Profile()
    return found


def add(store: Store, tree_id: str, opened: Iterable[tuple[bytes, int]]) -> bool:
    """Merge what a start has opened into a tree's profile; whether that says anything new.

    Raises what `disk_error` says.
    """
    return _merge(store, tree_id, Profile(tuple(opened)))


def _merge(store: Store, tree_id: str, other: Profile) -> bool:
    before = read(store, tree_id)
    after = before.merged(other)
    if after == before or not store.tree_path(tree_id).exists():
        return False
    _write(store, tree_id, after)
    return True


def _write(store: Store, tree_id: str, profile: Profile) -> None:
    path = path_of(store, tree_id)
    made = f"{store.root}/incoming/profile-{secrets.token_hex(8)}"
    try:
        with store.steady():
            write_file(made, msgspec.msgpack.encode(profile), 0o644)
            os.rename(made, path)
    except OSError as error:
        raise disk_error(error, "writing", path) from error


def receive(store: Store, tiers: Sequence[Tier], tree_id: str) -> bool:
    """Take over the profile of the first tier that has one; whether that says anything new. Raises nothing."""
    for tier in tiers:
        try:
            found = decode(decode_blob(tier.get(_blob(tree_id)), _MAX_BYTES, tier.title))
            return _merge(store, tree_id, found)
        except (FarcallError, TransientError):
            continue
    return False


def packs_within(store: Store, tree_id: str) -> list[Pack]:
    """The packs of a tree's profile that have nothing but objects of the tree, whoever may have made it. Raises as
    `Store.tree`."""
    packs = read(store, tree_id).packs
    if not packs:
        return []
    own = store.tree(tree_id).digests()
    return [pack for pack in packs if own.issuperset(digest for digest, _, _ in pack.objects())]


class Exchange:
    """Profiles from other machines, and for them. Its methods block, and raise nothing: a profile is a hint."""

    def __init__(self, store: Store, tiers: Sequence[WritableTier]) -> None:
        self._store = store
        self._tiers = tiers

    def receive(self, tree_id: str) -> bool:
        """As the function of that name, from all tiers."""
        return receive(self._store, self._tiers, tree_id)

    def send(self, tree_id: str) -> None:
        """Give the profile to the first tier that takes it, with packs of what it names and is here."""
        profile = read(self._store, tree_id)
        packs = self._new_packs(profile)
        if len(profile.packs) + len(packs) > _MOST_PACKS:
            profile = msgspec.structs.replace(profile, packs=())
            packs = self._new_packs(profile)
        profile = msgspec.structs.replace(profile, packs=(*profile.packs, *packs))
        for tier in self._tiers:
            try:
                for pack in packs:
                    tier.put(pack.name, encode_blob(pack_bytes(self._store, pack)))
                tier.put(_blob(tree_id), encode_blob(msgspec.msgpack.encode(profile)))
                if packs:  # with what starts have opened meanwhile
                    now = read(self._store, tree_id)
                    _write(self._store, tree_id, msgspec.structs.replace(now, packs=profile.packs))
                return
            except (FarcallError, TransientError):
                continue

    def _new_packs(self, profile: Profile) -> list[Pack]:
        """Packs of the small objects that are here and in none yet."""
        packed = {digest for pack in profile.packs for digest, _, _ in pack.objects()}
        sizes: dict[bytes, int] = {}
        for digest, piece in profile.opened:
            if piece == WHOLE and digest not in packed:
                with suppress(OSError):
                    size = os.stat(self._store.object_path(digest)).st_size
                    if 0 < size <= BLOB_BYTES:
                        sizes[digest] = size
        return list(pack_up(sizes, _PACK_BYTES))


def _blob(tree_id: str) -> str:
    return f"profiles/{tree_id}"
