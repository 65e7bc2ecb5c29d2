"""The smallest EROFS image: an empty root directory in one block, to try whether the kernel mounts one.

Format: the kernel's Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h.
"""

import stat
import struct

_BLOCK = 4096
_SUPERBLOCK_AT = 1024
_MAGIC = 0xE0F5E1E2
_SLOT = 32  # bytes an inode number counts
_ROOT = 36  # the first slot behind the superblock
_DIRECTORY = 2  # file type in a directory entry
_INLINE = 2  # data layout: the directory's entries follow its inode


def empty_image() -> bytes:
    """The image's bytes."""
    image = bytearray(_BLOCK)
    # magic, checksum, features, block bits, extra slots, root inode, inodes, build time (s, ns), blocks, metadata block
    superblock = (_MAGIC, 0, 0, 12, 0, _ROOT, 1, 0, 0, 1, 0)
    struct.pack_into("<IIIBBHQQIII", image, _SUPERBLOCK_AT, *superblock)
    names = b"..."
    entries = struct.pack("<QHBB", _ROOT, 24, _DIRECTORY, 0) + struct.pack("<QHBB", _ROOT, 25, _DIRECTORY, 0) + names
    # format, xattrs, mode, links, size, reserved, union, inode number, uid, gid, reserved
    inode = (_INLINE << 1, 0, stat.S_IFDIR | 0o755, 2, len(entries), 0, 0, 1, 0, 0, 0)
    struct.pack_into("<HHHHIIIIHHI", image, _ROOT * _SLOT, *inode)
    at = (_ROOT + 1) * _SLOT
    image[at : at + len(entries)] = entries
    return bytes(image)
