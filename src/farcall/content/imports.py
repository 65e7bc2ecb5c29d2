"""The files of the modules that a function imports from an image: what every container of it has to find.

A container's overlay knows no name that it has not been asked for. One process can ask while the container's Python is
still starting. What it asks for was noted by an earlier container of the function, in a file beside the image's tree,
`imports/<tree id>/<function>`: paths with a zero byte between them, in the order of their imports. It is a hint,
never believed; the launcher reads it (`launcher.warming`).
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress

from farcall.content.disk import write_file
from farcall.content.store import Store
from farcall.errors import FarcallError

MAX_BYTES = 192 * 1024  # of the paths of one function


def path_of(store: Store, tree_id: str, function: str) -> str:
    """Where the paths are, or would be; `function` is any text that names it."""
    return f"{store.root}/imports/{tree_id}/{hashlib.sha256(function.encode()).hexdigest()[:32]}"


def write(store: Store, tree_id: str, function: str, paths: Sequence[str]) -> None:
    """Notes the paths in place of what is there. A full disk is no matter."""
    path = path_of(store, tree_id, function)
    made = f"{store.root}/incoming/imports-{secrets.token_hex(8)}"
    with suppress(FarcallError, OSError), store.steady():
        if store.tree_path(tree_id).exists():
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_file(made, b"\0".join(map(os.fsencode, paths))[:MAX_BYTES], 0o644)
            os.rename(made, path)
