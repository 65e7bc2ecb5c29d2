"""Programs of other projects that farcall uses where they are installed."""

import os
import shutil
from collections.abc import Mapping
from typing import NamedTuple

from farcall.doctor.finding import Finding
from farcall.doctor.setting import as_root

GROUP = "Packages"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Package(NamedTuple):
    """A program, what it is for, and its package: by package manager where it is not called like the program, "" where
    that manager has none. `instead` is what gets it then."""

    program: str
    purpose: str
    names: Mapping[str, str]
    instead: str = ""


def _everywhere(name: str) -> dict[str, str]:
    return dict.fromkeys(("apt", "dnf", "pacman", "zypper", "apk"), name)


_PACKAGES = (
    Package("slirp4netns", "the network of containers", {}),
    Package(
        "newuidmap",
        "more than one user in a container without root",
        {"apt": "uidmap", "dnf": "shadow-utils", "pacman": "shadow", "zypper": "shadow", "apk": "shadow-uidmap"},
    ),
    Package("nft", "rules for the network of clusters", _everywhere("nftables")),
    Package(
        "runsc",
        "gVisor: containers for code you do not trust",
        _everywhere("") | {"apt": "runsc"},
        "see https://gvisor.dev/docs/user_guide/install",
    ),
    Package("criu", "snapshots of running containers", {}),
    Package(
        "mmdebstrap",
        "Debian images without a registry",
        _everywhere("") | {"apt": "mmdebstrap"},
        "build images on Debian or Ubuntu",
    ),
    Package("uv", "fast installs of Python packages in images", {"apt": "", "zypper": ""}, "pip install uv"),
)
_COMMANDS = {
    "apt-get": ("apt", "apt install"),
    "dnf": ("dnf", "dnf install"),
    "pacman": ("pacman", "pacman -S"),
    "zypper": ("zypper", "zypper install"),
    "apk": ("apk", "apk add"),
}


def probe() -> list[Finding]:
    """Each program: where it is, or how this system's package manager gets it. And the device slirp4netns needs."""
    return [_tun(), *(_package(package) for package in _PACKAGES)]


def find(program: str) -> str | None:
    """Where a program is, also when an ordinary user's PATH leaves out where root's programs live."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_PATH}")


def _package(package: Package) -> Finding:
    where = find(package.program)
    if where is not None:
        return Finding(GROUP, package.program, "ok", package.purpose, where)
    return Finding(GROUP, package.program, "missing", package.purpose, "", install_line(package))


def install_line(package: Package) -> str:
    """The command that installs it here."""
    for program, (manager, command) in _COMMANDS.items():
        if find(program) is not None:
            name = package.names.get(manager, package.program)
            return as_root(f"{command} {name}") if name else package.instead
    return package.instead or f"install {package.program}"


def _tun() -> Finding:
    device, purpose = "/dev/net/tun", "the network of containers, with slirp4netns"
    if not os.path.exists(device):
        return Finding(GROUP, device, "missing", purpose, "", as_root("modprobe tun"))
    if not os.access(device, os.R_OK | os.W_OK):
        return Finding(GROUP, device, "missing", purpose, "may not be opened", as_root(f"chmod 666 {device}"))
    return Finding(GROUP, device, "ok", purpose)
