"""The first start from an image after a restart of the machine: its names are read ahead while the container is made.

Programs open files one after the other, and on a cold disk each asks for two more that plain directories do not have: a
block of the image, which the kernel reads without looking ahead, and the folder of the store in which the file happens
to be, one of 256. Read in one go, and by a few threads, both cost a fraction of that.
"""

import contextlib
import os
import threading
from collections.abc import Iterator

from farcall.spec.container import TreeMount

_THREADS = 8  # that wait for the disk
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
        size = os.fstat(fd).st_size
        if _is_in_memory(fd, size):
            return None
        os.posix_fadvise(fd, 0, min(size, _MOST_BYTES), os.POSIX_FADV_WILLNEED)
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


def _is_in_memory(fd: int, size: int) -> bool:
    """Whether the end of a file is; what is read ahead is read as a whole."""
    if size == 0:
        return True
    try:
        return os.preadv(fd, [bytearray(1)], size - 1, os.RWF_NOWAIT) == 1
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
