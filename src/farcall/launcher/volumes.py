"""Trees that a container sees as its own to write to: volumes, as they were when it started.

What it writes goes into a layer in the container's area, and with it; making that a version of the volume is the
runner's business, which sees what the container sees. Where nothing can be mounted above a tree, it is copied.
"""

import os

from farcall.launcher import image_root, patchwork, syscalls
from farcall.launcher.area import make_layer
from farcall.launcher.stage import Detached, Stage
from farcall.spec.container import TreeMount


def open_writable(stage: Stage, tree: TreeMount, *, own_userns: bool) -> Detached:
    """The tree under a layer of its own, to be attached. OSError."""
    layers = stage.layers(tree)
    layer, merged = f"disk/volume-{layers.lower}", f"volume-{layers.lower}"
    os.mkdir(layer, 0o755)
    make_layer(layer)
    if tree.overlay:
        image_root.lay(layers, own_userns=own_userns, layer=layer, merged=merged)
    else:
        patchwork.copy(layers.lower, f"{layer}/upper", own_userns=own_userns)
        merged = f"{layer}/upper"
    fd = syscalls.open_tree(merged, recursive=False)
    syscalls.mount_setattr(fd, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
    return Detached(fd, tree.target, True)
