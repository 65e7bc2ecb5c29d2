"""What a program's images and functions are made of, told to `farcall run --watch`, which runs it again on changes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

VARIABLE = "_FARCALL_WATCH"  # the descriptor of a pipe that takes paths, each with a zero byte behind it


def tell(paths: Iterable[str]) -> None:
    """Names local files and folders; does nothing unless somebody watches."""
    pipe = os.environ.get(VARIABLE, "")
    if not pipe.isdigit():
        return
    data = b"".join(os.fsencode(path) + b"\0" for path in paths)
    try:
        while data:
            data = data[os.write(int(pipe), data) :]
    except OSError:  # nobody does any more
        del os.environ[VARIABLE]


def tell_program(error: BaseException | None = None) -> None:
    """Names the user's modules that are loaded, and the file that has kept the program from being loaded."""
    if VARIABLE not in os.environ:
        return
    from farcall.sdk.source import is_installed

    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] != "farcall"]
    files = [getattr(module, "__file__", None) for module in modules]
    found = {os.path.abspath(file) for file in files if file and not is_installed(os.path.abspath(file))}
    if isinstance(error, SyntaxError) and error.filename and os.path.isfile(error.filename):
        found.add(os.path.abspath(error.filename))
    tell(found)
