"""ADD of a URL: a file of the network that becomes part of an image."""

from __future__ import annotations

import hashlib
import posixpath
import stat
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urlsplit

from farcall.builder.copying import Selection, copy, owner_of, text_of
from farcall.content.lease import Lease
from farcall.content.tree import Entry, Tree
from farcall.errors import ImageBuildError
from farcall.spec.image import Download

_TIMEOUT = 60.0  # seconds without a byte
_MODE = 0o600  # as Docker's


def download(lease: Lease, base: Tree, step: Download, workdir: str, say: Callable[[str], None]) -> Tree:
    """`base` with what the URL gives, under its own name where the target is a folder. Raises ImageBuildError."""
    import httpx

    name = unquote(posixpath.basename(urlsplit(step.url).path))
    if not name and (step.target.endswith("/") or not step.target):
        raise ImageBuildError(f"ADD {step.url}: the URL names no file; give the target a file's name")
    say(f"fetching {step.url}")
    try:
        with httpx.stream("GET", step.url, follow_redirects=True, timeout=_TIMEOUT) as response:
            if response.status_code != 200:
                raise ImageBuildError(f"ADD {step.url}: the server answered {response.status_code}")
            digest, size = lease.add_stream(_Reader(response.iter_bytes()))
            modified = response.headers.get("last-modified", "")
    except httpx.HTTPError as error:
        raise ImageBuildError(f"ADD {step.url}: {error or type(error).__name__}") from error
    kind, _, wanted = step.checksum.partition(":")
    found = digest.hex() if size else hashlib.sha256().hexdigest()
    if step.checksum and (kind != "sha256" or wanted.lower() != found):
        raise ImageBuildError(f"ADD {step.url}: its checksum is sha256:{found}, not {step.checksum}")
    mode = stat.S_IFREG | (_MODE if step.mode is None else step.mode)
    entry = Entry((name or "file").encode(), mode, mtime_ns=_time(modified), size=size, digest=digest)
    owner = (0, 0)
    if step.owner:
        owner = owner_of(text_of(lease, base, b"etc/passwd"), text_of(lease, base, b"etc/group"), step.owner)
    return copy(base, Selection(Tree.of([entry]), entry.path), step.target, workdir, owner=owner, mode=None)


def _time(modified: str) -> int:
    try:
        return int(parsedate_to_datetime(modified).timestamp()) * 10**9
    except (ValueError, TypeError):
        return 0


class _Reader:
    """Chunks of bytes, as a file to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int) -> bytes:
        while len(self._left) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._left += chunk
        data, self._left = self._left[:size], self._left[size:]
        return data
