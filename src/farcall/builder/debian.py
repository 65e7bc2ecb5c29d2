"""The Debian that images begin with, where no registry is at hand: bootstrapped from this machine's own mirror."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from shutil import which
from typing import IO

from farcall.builder.progress import PROGRESS
from farcall.errors import CorruptedError, ImageBuildError
from farcall.launcher import namespaces, seccomp, syscalls

SUITE = "bookworm"
PYTHON = "3.11"  # the suite's own
# What python:*-slim images of the registries have beside Debian's minimal base, and what interpreters from elsewhere
# are linked to.
PACKAGES = (
    "ca-certificates",
    "libbz2-1.0",
    "libexpat1",
    "libffi8",
    "libgdbm6",
    "liblzma5",
    "libncursesw6",
    "libnsl2",
    "libreadline8",
    "libsqlite3-0",
    "libssl3",
    "libtirpc3",
    "libuuid1",
    "netbase",
    "python-is-python3",
    "python3",
    "python3-pip",
    "python3-venv",
    "tzdata",
    "zlib1g",
)
# Changes whenever what is bootstrapped does, for another reason than the lists above.
RECIPE = 1

# Documentation is most of what a package unpacks and nothing of what a program needs; licences stay.
_EXCLUDED = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/doc/*", "/usr/share/locale/*")
_INCLUDED = ("/usr/share/doc/*/copyright",)
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SUITES = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")

_DEVICES = "full null random tty urandom zero"
# Where there is root and nobody else (no subordinate ids), apt has no user to become, and a file system of terminals
# cannot be mounted as mmdebstrap does: it belongs to a group.
_FOR_ONE_ID = (
    '--aptopt=APT::Sandbox::User "root"',
    "--skip=chroot/mount/dev",
    f'--extract-hook=for name in {_DEVICES}; do touch "$1/dev/$name" && mount --bind "/dev/$name" "$1/dev/$name"; done',
    f'--customize-hook=for name in {_DEVICES}; do umount "$1/dev/$name" && rm "$1/dev/$name"; done',
)


def bootstrap(take: Callable[[IO[bytes]], str], say: Callable[[str], None], scratch: Path) -> str:
    """Makes the base and hands it as a tar stream to `take`, whose result (the tree's id) it returns. What the
    bootstrap does goes to `say`, a line each; it works in the folder `scratch`, where what is left goes, too, when it
    is killed.

    Raises ImageBuildError where mmdebstrap is missing or fails.
    """
    program = which("mmdebstrap")
    if program is None:
        raise ImageBuildError(
            "Image.debian_slim() needs a registry that can be reached, or mmdebstrap to make a Debian here: "
            "`sudo apt install mmdebstrap`"
        )
    command = [
        program,
        "--variant=minbase",
        "--format=tar",
        f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
        *(f"--dpkgopt=path-include={pattern}" for pattern in _INCLUDED),
        # pip installs into the image's own Python: an image has no other owner who could break by it.
        '--customize-hook=rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED',
        '--customize-hook=rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/* "$1"/var/log/*',
        SUITE,
        "-",
    ]
    sources = "\n".join(machine_sources())
    if sources:
        command.append("-")
    elif os.path.exists(_KEYRING):
        command.insert(1, f"--keyring={_KEYRING}")
    one_id = namespaces.has_one_id(namespaces.own_ids("uid"))
    if one_id:
        command[1:1] = _FOR_ONE_ID
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(scratch)},
        preexec_fn=_keep_owners if one_id else _mount_apart if os.geteuid() == 0 else None,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    with process:
        process.stdin.write(sources.encode())
        process.stdin.close()
        last = _Told(process.stderr, say)
        last.start()
        try:
            tree_id = take(process.stdout)
        except CorruptedError:
            tree_id = ""  # it ended in the middle, and says why
        except BaseException:
            process.terminate()
            raise
        finally:
            process.stdout.close()
            last.join()
    if process.returncode != 0 or not tree_id:
        raise ImageBuildError(f"mmdebstrap ended with status {process.returncode}: {last.why()}")
    return tree_id


def _keep_owners() -> None:
    """In the process that becomes mmdebstrap, as `_mount_apart`: all files are root's, too."""
    _mount_apart()
    seccomp.install(seccomp.owners_kept(syscalls.machine()))


def _mount_apart() -> None:
    """In the process that becomes mmdebstrap: its mounts end with it, however it ends."""
    syscalls.unshare(syscalls.NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)


def machine_sources(etc: Path = Path("/etc/apt")) -> Iterator[str]:
    """The lines and paragraphs of this machine's apt configuration that name a mirror of the suite."""
    for file in (etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if file.suffix == ".sources":
            yield from _stanzas(text)
        elif file.name == "sources.list" or file.suffix == ".list":
            yield from _lines(text)


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        found = re.fullmatch(r"\s*deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*?)\s*(#.*)?", line)
        if found and found[3] in _SUITES and "main" in found[4].split():
            yield f"deb {found[1] or ''}{found[2]} {found[3]} main"


def _stanzas(text: str) -> Iterator[str]:
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        for line in stanza.splitlines():
            name, colon, value = line.partition(":")
            if colon and not line.startswith(("#", " ", "\t")):
                fields[name.strip().lower()] = value.strip()
        suites = [suite for suite in fields.get("suites", "").split() if suite in _SUITES]
        components = fields.get("components", "").split()
        if "deb" not in fields.get("types", "").split() or not suites or "main" not in components:
            continue
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        signed = f"[signed-by={fields['signed-by']}] " if fields.get("signed-by", "").startswith("/") else ""
        for uri in fields.get("uris", "").split():
            for suite in suites:
                yield f"deb {signed}{uri} {suite} main"


def _told(line: str) -> str:
    """A line of mmdebstrap's, or of the apt that it runs, as people are told it: what it does next says how far it is,
    and only what is wrong stays. "" for nothing."""
    kind, _, text = line.partition(": ")
    if kind == "I":
        return f"{PROGRESS}{text.removesuffix('...')}"
    return line if kind in ("W", "E", "N") or line.startswith("Err:") else ""


class _Told:
    """Reads what mmdebstrap says of itself, in a thread: a full pipe would hold it up."""

    def __init__(self, stream: IO[bytes], say: Callable[[str], None]) -> None:
        import threading

        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read, args=(stream, say), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _read(self, stream: Iterable[bytes], say: Callable[[str], None]) -> None:
        for data in stream:
            line = data.decode(errors="replace").rstrip()
            self._lines = [*self._lines[-20:], line]
            if told := _told(line):
                say(told)

    def why(self) -> str:
        """The last error it printed, else its last line."""
        wrong = [line for line in self._lines if line.startswith(("E:", "Err:", "W:"))]
        return (wrong or self._lines or ["it said nothing"])[-1]
