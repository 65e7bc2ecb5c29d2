"""An `ssh` that does not come through, whatever it leaves behind."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from farcall import errors
from farcall.link import ssh
from farcall.link.address import Address


def test_what_an_ssh_has_started_does_not_keep_its_error_back(tmp_path: Path) -> None:
    """As the `ssh` to a jump host does, that waits for a network that is gone."""
    proxy = tmp_path / "proxy"
    fake = tmp_path / "ssh"
    fake.write_text(f"#!/bin/sh\nsleep 1000 </dev/null >/dev/null & echo $! > {proxy}\necho 'no route' >&2; exit 255\n")
    fake.chmod(0o755)

    async def attach() -> None:
        command = ssh.Command(Address.parse("ssh://box"), str(fake))
        await asyncio.wait_for(ssh.attach(command, "true"), 60)

    with pytest.raises(errors.ConnectionError, match="ssh://box cannot be reached: no route"):
        asyncio.run(attach())
    deadline = time.monotonic() + 30
    while _runs(int(proxy.read_text())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(int(proxy.read_text()))


def _runs(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)  # orphans are this process's children
    except ChildProcessError:
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
