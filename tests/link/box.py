"""Another machine, as `ssh` sees one: a real sshd, with a home of its own, whose connections can be cut.

`ssh` reaches it by a `ProxyCommand` that runs `sshd -i` for that one connection, so nothing listens and no port is
needed.
"""

import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SSHD = "/usr/sbin/sshd"


@dataclass
class Box:
    """`name` is its host's; `url` its address; `ssh` the command that reaches it, for the setting of that name."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])
    name: str = "box"
    line: str = "exec"  # how a command is run at the other end of the line

    def __post_init__(self) -> None:
        self.keys = self.root / "keys"
        self.home = self.root / "home"
        for directory in (self.keys, self.home):
            directory.mkdir(parents=True, mode=0o700)
        for name in ("host", "user", "stranger"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", self.keys / name]
            subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
        (self.keys / "authorized").write_text((self.keys / "user.pub").read_text())
        self.environment = {
            "HOME": str(self.home),
            "XDG_DATA_HOME": str(self.home / "data"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "FARCALL_STATE_DIR": str(self.root / "far"),
        } | self.environment
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # the package's service makes it
        self.configure()
        self.trust()

    @property
    def url(self) -> str:
        return f"ssh://{self.name}"

    @property
    def ssh(self) -> str:
        return f"ssh -F {self.root}/ssh_config"

    def configure(self, key: str = "user", greeting: str = "") -> None:
        """Writes both ends' configuration; `key` is the one that the client has. Who logs in gets a `greeting` and
        nothing else, where there is one."""
        settings = " ".join(f"{name}={value}" for name, value in self.environment.items())
        (self.root / "sshd_config").write_text(
            f"HostKey {self.keys}/host\nAuthorizedKeysFile {self.keys}/authorized\nPidFile none\nStrictModes no\n"
            f"UsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n"
            f"Subsystem sftp internal-sftp\nSetEnv {settings}\n"
            + (f"ForceCommand echo {greeting}; exit 1\n" if greeting else "")
        )
        # The descriptor of the log keeps what sshd says away from the stream.
        proxy = self.root / "proxy"
        proxy.write_text(
            f"#!/bin/sh\necho $$ >> {self.root}/connections\n[ -e {self.root}/cut ] && exit 1\n"
            f"{self.line} {SSHD} -i -f {self.root}/sshd_config 2>>{self.root}/sshd.log\n"
        )
        proxy.chmod(0o700)
        (self.root / "ssh_config").write_text(
            f"Host {self.name}\n  User {_user()}\n  ProxyCommand {proxy}\n  IdentityFile {self.keys}/{key}\n"
            f"  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile {self.root}/known\n"
            "  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n"
        )

    def trust(self, key: str = "host") -> None:
        """The client knows that host key, as after a first connection by hand."""
        (self.root / "known").write_text(f"{self.name} {(self.keys / f'{key}.pub').read_text()}")

    def connections(self) -> int:
        """How many have been made, or tried."""
        log = self.root / "connections"
        return len(log.read_text().split()) if log.exists() else 0

    def cut(self) -> None:
        """Ends all connections; new ones fail until `mend`."""
        (self.root / "cut").touch()
        self._signal(signal.SIGKILL)

    def freeze(self) -> list[int]:
        """From now on nothing comes on the connections there are. Returns sshd's processes, which the test must end."""
        return self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> list[int]:
        found: list[int] = []
        for pid in map(int, (self.root / "connections").read_text().split()):
            try:
                if b"sshd" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, number)
                    found.append(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def mend(self) -> None:
        """Connections can be made again."""
        (self.root / "cut").unlink()

    def processes(self) -> dict[int, str]:
        """Farcall's processes there: pid to command line."""
        mark = f"FARCALL_STATE_DIR={self.environment['FARCALL_STATE_DIR']}".encode()
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:
                continue
        return found


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name
