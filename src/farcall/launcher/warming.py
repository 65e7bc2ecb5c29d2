"""Names of an image that are looked up ahead, while the container is made and its Python starts.

The first start after a restart of the machine: programs open files one after the other, and on a cold disk each asks
for two more that plain directories do not have: a block of the image, which the kernel reads without looking ahead, and
the folder of the store in which the file happens to be, one of 256. Read in one go, and by a few threads, both cost a
fraction of that.

Every start: a container's overlay is new, and knows no name before it was asked for it. Pid 1 asks for what an earlier
container of the function has imported, on another processor than the one that Python starts on.
"""

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator, Sequence

from farcall.launcher import syscalls
from farcall.spec.container import TreeMount

_THREADS = 8  # that wait for the disk
_SHARE = 0.9  # of an image's names that are in memory where they need not be read
_MOST_PATHS = 192 * 1024  # bytes of paths that are looked up
_MOST_BYTES = 32 * 1024 * 1024  # of an image's names, and of folders, that are read ahead


def begin(root: TreeMount | None) -> str | None:
    """Let the kernel read the names of an image that are not in memory; the folder of objects that is to be read, too.

    None where there is nothing to read: for anything but EROFS, and where the names are in memory, which takes
    microseconds to find out.
    """
    if root is None or root.kind != "erofs":
        return None
    try:
        fd = os.open(root.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None  # mounting it says why
    try:
        size = min(os.fstat(fd).st_size, _MOST_BYTES)
        if _is_in_memory(fd, size):
            return None
        os.posix_fadvise(fd, 0, size, os.POSIX_FADV_WILLNEED)
    except OSError:
        return None
    finally:
        os.close(fd)
    return root.objects


def read_folders(objects: str) -> None:
    """Read the names in the folders of a store's objects, so that the kernel has them."""
    with contextlib.suppress(OSError):
        folders = iter(os.listdir(objects))
        threads = [threading.Thread(target=_read, args=(objects, folders)) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def paths(file: str) -> list[bytes]:
    """The paths in a file of `content.imports`; none where there is no file ("")."""
    try:
        with open(file, "rb") as stream:
            return [path for path in stream.read(_MOST_PATHS).split(b"\0") if path.startswith(b"/")]
    except OSError:
        return []


def look_up(paths: Sequence[bytes]) -> None:
    """Ask for each file of the container as an import does, so that its overlay has found it when the import asks."""
    for path in paths:
        with contextlib.suppress(OSError):
            if path.endswith(b".py"):
                os.stat(path)  # of a source that has its bytecode nobody wants more
            else:
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))


def _is_in_memory(fd: int, size: int) -> bool:
    """Whether the first `size` bytes of a file are, or as many others; where the kernel cannot tell, whether the last
    of them is: what is read ahead is read as a whole."""
    with contextlib.suppress(OSError):
        return syscalls.cached_pages(fd) * mmap.PAGESIZE >= _SHARE * size
    try:
        return size == 0 or os.preadv(fd, [bytearray(1)], size - 1, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False


def _read(objects: str, folders: Iterator[str]) -> None:
    left = _MOST_BYTES // _THREADS
    for name in folders:
        with contextlib.suppress(OSError):
            folder = f"{objects}/{name}"
            left -= os.stat(folder).st_size
            if left < 0:
                return
            os.listdir(folder)
