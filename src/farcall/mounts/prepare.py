"""Making a tree ready to be mounted: once, for all containers that come after."""

from __future__ import annotations

import os
import secrets

from farcall.content.disk import disk_error, write_file
from farcall.content.lease import Lease
from farcall.mounts.erofs import image_of
from farcall.mounts.farm import make_farm
from farcall.mounts.mode import mode
from farcall.spec.container import TreeMount


def prepare(lease: Lease, tree_id: str) -> TreeMount:
    """The tree, ready to be mounted; made ready first where it is not. The lease keeps it from then on.

    Raises `NotFoundError` for a tree that is not in the store, and what `disk_error` says.
    """
    lease.keep_tree(tree_id)
    store = lease.store
    if mode().kind == "erofs":
        image = store.root / "erofs" / tree_id
        if not image.exists():
            made = f"{lease.scratch}/{secrets.token_hex(8)}"
            try:
                write_file(made, image_of(store.tree(tree_id)), 0o444)
                os.rename(made, image)
            except OSError as error:
                raise disk_error(error, "writing", image) from error
        return TreeMount("erofs", str(image), str(store.objects))
    farm = store.root / "farms" / tree_id
    if not farm.exists():
        make_farm(lease, store.tree(tree_id), farm)
    return TreeMount("directory", str(farm / "root"))
