"""Settings of the kernel, and the way to say how they are changed."""

import os


def setting(name: str) -> str:
    """The value of a sysctl such as "user.max_user_namespaces"; "" where the kernel has none by that name."""
    try:
        with open("/proc/sys/" + name.replace(".", "/")) as stream:
            return stream.read().strip()
    except OSError:
        return ""


def kernel_version() -> tuple[int, int]:
    """The kernel's version, major and minor."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(character for character in minor if character.isdigit()) or 0)


def as_root(command: str) -> str:
    """The command as this user would have to type it."""
    return command if os.geteuid() == 0 else f"sudo {command}"
