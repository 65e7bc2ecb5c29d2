"""Interpreters that an image can be given: those found on this machine, or what uv can fetch.

An interpreter is put into an image at its own prefix, without what its user installed into it.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from farcall.errors import ImageBuildError, InvalidError
from farcall.interpreters import details
from farcall.interpreters.choose import installed
from farcall.interpreters.private import uv_executable

SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
_FETCH_SECONDS = 300.0
# Prefixes that are not one interpreter's own.
_SHARED = frozenset({"/", "/usr", "/usr/local", "/opt"})
# What of a prefix an image does without: the packages of its user (pip comes back by ensurepip), tests, bytecode.
_LEFT_OUT = re.compile(
    rb"(^|.*/)__pycache__$|^lib/python3\.\d+t?/(site-packages|test|idlelib|turtledemo)/.+"
    rb"|^lib/python3\.\d+t?/config-[^/]*/.*\.a$|^share/(man|doc)(/.*)?$"
)
_PROGRAMS = re.compile(rb"^bin/(python(3(\.\d+t?)?)?)$")


class Python(NamedTuple):
    """An interpreter on this machine that can be copied: its executable is `prefix`/bin/pythonX.Y."""

    prefix: str
    version: str

    @property
    def minor(self) -> str:
        """Such as "3.12"."""
        return ".".join(self.version.split(".")[:2])


def find(version: str, environ: Mapping[str, str]) -> Python | None:
    """An interpreter of that version ("3.12" or "3.12.1") with a prefix of its own, None where there is none."""
    minor = ".".join(version.split(".")[:2])
    for executable in installed(minor, environ):
        try:
            found = details(executable)
        except InvalidError:
            continue
        prefix = base_prefix(found.executable)
        if prefix is None or prefix in _SHARED or not found.tag.endswith("gnu"):
            continue
        if version in (minor, found.version):
            return Python(prefix, found.version)
    return None


def base_prefix(executable: str) -> str | None:
    """The prefix of the Python behind `executable`, which may be a virtual environment's."""
    real = os.path.realpath(executable)
    folder = os.path.dirname(os.path.dirname(real))
    return folder if os.path.basename(os.path.dirname(real)) == "bin" else None


def fetch(version: str, folder: Path, say: Callable[[str], None]) -> Python | None:
    """As `find`, from where uv gets its interpreters; None where that cannot be reached."""
    uv = uv_executable()
    if uv is None:
        return None
    say(f"asking uv for Python {version}")
    command = [uv, "python", "install", "--no-bin", "--install-dir", str(folder), version]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_FETCH_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"uv: {error}")
        return None
    for line in done.stderr.splitlines():
        say(f"uv: {line}")
    for path in sorted(folder.glob(f"cpython-{version}*")):
        if not path.is_symlink() and (path / "bin" / "python3").exists():
            found = details(str(path / "bin" / "python3"))
            return Python(str(path), found.version)
    return None


def unavailable(version: str, environ: Mapping[str, str], own: str) -> ImageBuildError:
    """Says which versions can be had; `own` is the base's."""
    here = [minor for minor in SUPPORTED if minor == own or find(minor, environ) is not None]
    return ImageBuildError(
        f"Python {version} is not to be had: no interpreter of that version with a prefix of its own was found on this "
        f"machine (PATH, pyenv, uv), and neither a registry nor uv's downloads could be reached. "
        f"Available: {', '.join(here)}. Install it with `uv python install {version}`, or choose another version"
    )


def leaves_out(path: bytes) -> bool:
    """Whether an image does without this file of a prefix; `path` is relative to it."""
    if _LEFT_OUT.match(path):
        return True
    return path.startswith(b"bin/") and not _PROGRAMS.match(path)
