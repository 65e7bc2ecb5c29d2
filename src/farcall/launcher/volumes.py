"""Trees that a container sees as its own to write to: volumes, as they were when it started.

What it writes goes into a layer in the container's area, and with it; making that a version of the volume is the
runner's business, which sees what the container sees. Where nothing can be mounted above a tree, it is copied.
"""

import os

from farcall.launcher import image_root, patchwork, syscalls
from farcall.launcher.area import make_layer
from farcall.launcher.stage import Detached, Stage
from farcall.spec.container import TreeMount


def open_writable(stage: Stage, tree: TreeMount, *, own_userns: bool) -> list[Detached]:
    """The tree under a layer of its own, to be attached where it is seen and where it is written to. OSError."""
    layers = stage.layers(tree)
    layer, merged = f"disk/volume-{layers.lower}", f"volume-{layers.lower}"
    os.mkdir(layer, 0o755)
    make_layer(layer)
    if tree.overlay:
        image_root.lay(layers, own_userns=own_userns, layer=layer, merged=merged)
    else:
        patchwork.copy(layers.lower, f"{layer}/upper", own_userns=own_userns)
        merged = f"{layer}/upper"
    if not tree.written_at:
        return [_open(merged, tree.target, 0)]
    return [_open(merged, tree.target, syscalls.MOUNT_ATTR_RDONLY), _open(merged, tree.written_at, 0)]


def _open(merged: str, target: str, attributes: int) -> Detached:
    fd = syscalls.open_tree(merged, recursive=False)
    syscalls.mount_setattr(fd, attributes | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
    return Detached(fd, target, True)
