"""What the process of one `PrepareTree` does."""

from pathlib import Path

from farcall import mounts
from farcall.content.store import Store
from farcall.errors import FarcallError
from farcall.launcher import mount_modes
from farcall.launcher.messages import Failed, PrepareTree, TreePrepared
from farcall.launcher.namespaces import Place
from farcall.spec.container import MountMode


def carry_out(request: PrepareTree, mode: MountMode | None, place: Place, areas: Path) -> Failed | TreePrepared:
    """The answer to the request; without a `mode` it is found out."""
    try:
        store = Store(Path(request.store))
        with store.join_lease(request.lease) as lease:
            mode = mode or mount_modes.find(lease.scratch, areas, place)
            return TreePrepared(request.seq, mounts.prepare(lease, request.tree_id, mode), mode)
    except FarcallError as error:
        return Failed(request.seq, error.code, str(error))
