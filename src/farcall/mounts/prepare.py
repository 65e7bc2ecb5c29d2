"""Making a tree ready to be mounted: once, for all containers that come after."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from farcall.content.disk import disk_error, write_file
from farcall.content.lease import Lease
from farcall.content.store import Store
from farcall.mounts.erofs import image_of
from farcall.mounts.farm import make_farm
from farcall.mounts.lazy.sources import fetch_missing
from farcall.spec.container import MountMode, TreeMount


def prepare(lease: Lease, tree_id: str, mode: MountMode, on_lazy: Callable[[], object] = lambda: None) -> TreeMount:
    """The tree, ready to be mounted; made ready first where it is not. The lease keeps it from then on.

    Where it is partial and `mode` is not lazy, all its objects are fetched first, those that its start profile names
    before the others; `on_lazy` is called as soon as it seems that the tree will be lazy. For directories this
    process must be root where the launcher is, whose `mode` it is. Raises `NotFoundError` for a tree that is not in the
    store, `CorruptedError` for one that is damaged, what a `Fetcher` raises, and what `disk_error` says.
    """
    lease.keep_tree(tree_id)
    store = lease.store
    made = _mount_of(store, tree_id, mode)
    if not mode.lazy:
        fetch_missing(lease, tree_id)
    is_made = os.path.exists(made.path)
    if is_made and not store.partial_path(tree_id).exists():
        return made
    if mode.lazy and store.partial_path(tree_id).exists():
        on_lazy()
    tree = store.tree(tree_id)
    if mode.lazy and store.is_partial(tree):
        made = msgspec.structs.replace(made, is_lazy=True)
    if is_made:
        return made
    if made.kind == "erofs":
        image = f"{lease.scratch}/{secrets.token_hex(8)}"
        try:
            write_file(image, image_of(tree), 0o444)
            os.rename(image, made.path)
        except OSError as error:
            raise disk_error(error, "writing", made.path) from error
    else:
        make_farm(lease, tree, Path(made.path).parent, mode)
    return made


def prepared(store: Store, tree_id: str, mode: MountMode) -> TreeMount | None:
    """The tree as a mount where it is ready, None where `prepare` has to make it, or to look what is missing."""
    mount = _mount_of(store, tree_id, mode)
    return mount if os.path.exists(mount.path) and not store.partial_path(tree_id).exists() else None


def _mount_of(store: Store, tree_id: str, mode: MountMode) -> TreeMount:
    if mode.kind == "erofs":
        return TreeMount("erofs", str(store.root / "erofs" / tree_id), str(store.objects))
    # Directories of a start of the machine with other ids are others.
    owners = "ids" if mode.uid_map or mode.gid_map else "all"
    if owners == "ids":
        owners += "-" + hashlib.sha256(repr((mode.uid_map, mode.gid_map)).encode()).hexdigest()[:16]
    farm = store.root / "farms" / tree_id / owners
    return TreeMount("directory", str(farm / "root"), is_shifted=mode.is_shifted, overlay=mode.overlay)
