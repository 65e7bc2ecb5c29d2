"""What processes hold in memory, as the kernel tells."""

import os
from pathlib import Path

from farcall.sdk import client

MIB = 2**20


def server_pid() -> int:
    """The server that this process speaks with."""
    server = client.current().server
    assert server is not None
    return server.pid


def peak(pid: int) -> int:
    """The most bytes of memory that a process has had, without memory files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def on_each_machine() -> list[tuple[int, ...]]:
    """This process and its server, by the machine they are on: what is on its way has a copy on each."""
    here, server = os.getpid(), server_pid()
    return [(here,), (server,)] if client.server_url() else [(here, server)]


def memory_files(*pids: int) -> int:
    """Bytes of the memory files that processes hold descriptors of, each counted once."""
    sizes: dict[int, int] = {}
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            try:
                if os.readlink(path).startswith("/memfd:farcall"):
                    status = os.stat(path)
                    sizes[status.st_ino] = status.st_blocks * 512
            except FileNotFoundError:
                pass  # closed meanwhile
    return sum(sizes.values())
