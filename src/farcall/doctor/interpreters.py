"""The Python interpreters that programs could run with."""

import os
import re
import sys
from collections.abc import Iterator

from farcall.doctor.finding import Finding

GROUP = "Python"
OLDEST = (3, 11)
_NAME = re.compile(r"python3\.(\d+)t?$")


def probe() -> list[Finding]:
    """farcall's own interpreter, and all others that PATH, pyenv and uv have. None is started."""
    purpose = "runs farcall, and programs without an environment of their own"
    own = "{}.{}.{}".format(*sys.version_info)
    findings = [Finding(GROUP, f"Python {own}", "ok", purpose, sys.executable)]
    seen = {os.path.realpath(sys.executable)}
    others: dict[tuple[int, int], list[str]] = {}
    for path, version in _executables():
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            others.setdefault(version, []).append(path)
    for version, paths in sorted(others.items(), reverse=True):
        name = "Python {}.{}".format(*version)
        if version >= OLDEST:
            findings.append(Finding(GROUP, name, "ok", "runs programs (--python)", ", ".join(paths)))
        else:
            detail = f"{', '.join(paths)} (3.11 is the oldest)"
            findings.append(Finding(GROUP, name, "limited", "cannot run programs", detail))
    return findings


def _executables() -> Iterator[tuple[str, tuple[int, int]]]:
    home = os.path.expanduser("~")
    directories = os.environ.get("PATH", os.defpath).split(":")
    for versions in (
        os.environ.get("PYENV_ROOT", f"{home}/.pyenv") + "/versions",
        os.environ.get("UV_PYTHON_INSTALL_DIR", f"{home}/.local/share/uv/python"),
    ):
        try:
            directories += [f"{versions}/{name}/bin" for name in os.listdir(versions)]
        except OSError:
            continue
    for directory in dict.fromkeys(directories):
        if directory.endswith("/shims"):  # pyenv's: scripts that choose among the interpreters listed anyway
            continue
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            if (match := _NAME.match(name)) and os.access(f"{directory}/{name}", os.X_OK):
                yield f"{directory}/{name}", (3, int(match[1]))
