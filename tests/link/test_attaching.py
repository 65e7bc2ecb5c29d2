"""An `ssh` that does not come through, whatever it leaves behind."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from farcall import errors
from farcall.link import install, ssh
from farcall.link.address import Address


@pytest.mark.parametrize("detached", [False, True], ids=["jump host", "master"])
def test_what_an_ssh_has_started_does_not_keep_its_error_back(tmp_path: Path, detached: bool) -> None:
    """As the `ssh` to a jump host does, that waits for a network that is gone; or the master of a shared connection,
    which is to stay when this one ends."""
    proxy = tmp_path / "proxy"
    fake = tmp_path / "ssh"
    script = f"echo $$ > {proxy}; exec sleep 1000"
    left = f'{"setsid " if detached else ""}sh -c "{script}" </dev/null >/dev/null &'.replace("$$", r"\$\$")
    wait = f"until [ -s {proxy} ]; do sleep 0.01; done"
    fake.write_text(f"#!/bin/sh\n{left}\n{wait}; echo 'no route' >&2; exit 255\n")
    fake.chmod(0o755)

    async def attach() -> None:
        command = ssh.Command(Address.parse("ssh://box"), str(fake))
        try:
            await asyncio.wait_for(ssh.attach(command, "true"), 60)
        finally:
            if detached:
                os.kill(int(proxy.read_text()), signal.SIGKILL)
                await asyncio.sleep(0.1)  # for the loop to see the end of its stream

    with pytest.raises(errors.ConnectionError, match="ssh://box cannot be reached: no route"):
        asyncio.run(attach())
    assert _end(proxy)


@pytest.mark.parametrize(
    "hangs, step",
    [("login", "logging in"), ("venv", "making an environment with python3"), ("uv", "installing packages")],
)
def test_an_installation_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: str, step: str
) -> None:
    """And what hung is named. The machine is this one, with programs of its own."""
    monkeypatch.setattr(install, "SECONDS", 1.0 if hangs == "login" else 5.0)
    pids = tmp_path / "pids"
    programs = tmp_path / "bin"
    programs.mkdir()
    hang = f"echo $$ >> {pids}; echo 'is the index up?' >&2; exec sleep 1000\n"
    python = f'[ "$1" = -c ] && exit 0\n{hang if hangs == "venv" else "exit 0"}\n'
    for name, body in (("python3", python), ("uv", hang)):
        (programs / name).write_text(f"#!/bin/sh\n{body}")
        (programs / name).chmod(0o755)
    fake = tmp_path / "ssh"
    there = (
        f'export HOME={tmp_path} PATH={programs}:$PATH; unset XDG_DATA_HOME; for last; do :; done; exec sh -c "$last"'
    )
    fake.write_text(f"#!/bin/sh\n{hang if hangs == 'login' else there}\n")
    fake.chmod(0o755)
    command = ssh.Command(Address.parse("ssh://box"), str(fake))
    with pytest.raises(errors.TimeoutError) as given_up:
        asyncio.run(asyncio.wait_for(install.install(command, "key"), 120))
    said = str(given_up.value)
    assert "ssh://box" in said and step in said and "is the index up?" in said and command.by_hand in said
    assert _end(pids), "and nothing of it goes on"


def _end(pids: Path) -> bool:
    """Whether processes have ended, or do so now."""
    deadline = time.monotonic() + 30
    while any(_runs(int(pid)) for pid in pids.read_text().split()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _runs(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)  # orphans are this process's children
    except ChildProcessError:
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
