"""What the process of one `PrepareTree` does."""

import sys
from collections.abc import Callable
from pathlib import Path

from farcall import mounts
from farcall.content.store import Store
from farcall.errors import FarcallError
from farcall.launcher import mount_modes
from farcall.launcher.messages import Failed, PrepareTree, TreePrepared
from farcall.launcher.namespaces import Place
from farcall.spec.container import MountMode


def carry_out(
    request: PrepareTree, mode: MountMode | None, place: Place, areas: Path, on_lazy: Callable[[], object]
) -> Failed | TreePrepared:
    """The answer to the request; without a `mode` it is found out. `on_lazy` is called before the tree is ready, where
    its files will be fetched when they are opened."""
    try:
        store = Store(Path(request.store))
        with store.join_lease(request.lease) as lease:
            mode = mode or mount_modes.find(lease.scratch, areas, place)
            if not mode.lazy and store.partial_path(request.tree_id).exists():
                print(
                    f"farcall: all files of an image are fetched before it is mounted: {mode.not_lazy}", file=sys.stderr
                )
            return TreePrepared(request.seq, mounts.prepare(lease, request.tree_id, mode, on_lazy), mode)
    except FarcallError as error:
        return Failed(request.seq, error.code, str(error))
