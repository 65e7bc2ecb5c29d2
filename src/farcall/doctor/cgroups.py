"""Control groups: what enforces the limits of containers."""

import os
from pathlib import Path

from farcall.doctor.finding import Finding
from farcall.doctor.trial import attempt
from farcall.launcher.cgroups import CONTROLLERS, Cgroups

GROUP = "Limits"
_PURPOSES = {
    "cpu": "cpu shares and limits",
    "memory": "memory limits, and peak memory in reports",
    "pids": "a limit on processes",
}
_DELEGATE = (
    "sudo mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | "
    "sudo tee /etc/systemd/system/user@.service.d/farcall.conf && sudo systemctl daemon-reload (then log in again)"
)


def probe() -> list[Finding]:
    """Which controllers the launcher could use, by letting it look for them from where this process is."""
    return [_version(), *_controllers()]


def _version() -> Finding:
    with open("/proc/self/mountinfo") as stream:
        filesystems = {line.partition(" - ")[2].split(" ", 1)[0] for line in stream}
    purpose = "where the limits of containers are set"
    kinds = [name for name, filesystem in (("v1", "cgroup"), ("v2", "cgroup2")) if filesystem in filesystems]
    if not kinds:
        return Finding(GROUP, "cgroups", "missing", purpose, "not mounted", "mount -t cgroup2 none /sys/fs/cgroup")
    return Finding(GROUP, "cgroups", "ok", purpose, " and ".join(kinds))


def _controllers() -> list[Finding]:
    def look() -> str:
        found = Cgroups(f"farcall-doctor-{os.getpid()}")
        found.close()
        return " ".join(found.missing)

    trial = attempt(look)
    missing = trial.text.split() if trial.ok else list(CONTROLLERS)
    return [_controller(name, name in missing, trial.text if not trial.ok else "") for name in CONTROLLERS]


def _controller(name: str, missing: bool, complaint: str) -> Finding:
    title = f"{name} controller"
    if not missing:
        return Finding(GROUP, title, "ok", _PURPOSES[name])
    detail = complaint or "no writable cgroup has it; the limit is approximated"
    if os.geteuid() == 0:
        remedy = "mount /sys/fs/cgroup writable (Docker: --cgroupns=private -v /sys/fs/cgroup:/sys/fs/cgroup:rw)"
    elif Path("/run/systemd/system").exists():
        remedy = _DELEGATE
    else:
        remedy = "run the server as root"
    return Finding(GROUP, title, "missing", _PURPOSES[name], detail, remedy)
