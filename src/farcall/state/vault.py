"""The vault: what must not lie readable on the disk, sealed under a key in a file of its own."""

import contextlib
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from farcall.errors import CorruptedError
from farcall.state.disk import disk_error

KEY_NAME = "secrets.key"

_KEY_BYTES = 32  # AES-256
_NONCE_BYTES = 12  # what GCM is made for
_FORMAT = b"\x01"  # of what `seal` returns: this byte, the nonce, the ciphertext with its tag


class Vault:
    """Seals and opens bytes with AES-256-GCM (NIST SP 800-38D) under the key in one file, mode 0600.

    The key is made when something is sealed for the first time, and never again; it appears in no message. What is
    sealed names what it is, and opens only as that: no row can be passed off as another.
    """

    def __init__(self, path: Path) -> None:
        """Touches nothing yet."""
        self._path = path
        self._cipher: AESGCM | None = None

    def __repr__(self) -> str:
        return f"Vault({os.fspath(self._path)!r})"

    def seal(self, plain: bytes, what: str) -> bytes:
        """`plain`, unreadable without the key. Raises ResourceExhaustedError where the key cannot be written."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _FORMAT + nonce + self._with_key().encrypt(nonce, plain, what.encode())

    def open(self, sealed: bytes, what: str) -> bytes:
        """What was sealed as `what`. Raises CorruptedError where it was not, or not under this key."""
        body = sealed.removeprefix(_FORMAT)
        if len(body) < _NONCE_BYTES or not sealed.startswith(_FORMAT):
            raise CorruptedError(f"{what} is damaged: what the state store has of it was not sealed by farcall")
        if self._cipher is None and not self._path.exists():
            raise CorruptedError(
                f"{what} cannot be read: the key file {self._path} is gone. Put it back from a copy; without it "
                "everything that was stored under it is lost, and has to be made anew"
            )
        try:
            return self._with_key().decrypt(body[:_NONCE_BYTES], body[_NONCE_BYTES:], what.encode())
        except InvalidTag:
            raise CorruptedError(
                f"{what} cannot be read: it is damaged, or was stored under another key than {self._path} has now. "
                "Put that key file back, or make anew what was stored under it"
            ) from None

    def _with_key(self) -> AESGCM:
        if self._cipher is None:
            try:
                key = self._read()
                if key is None:
                    key = self._make()
            except OSError as error:
                raise disk_error(error, self._path) from error
            if len(key) != _KEY_BYTES:
                raise CorruptedError(
                    f"the key file {self._path} has {len(key)} bytes in place of {_KEY_BYTES}: put it back from a copy"
                )
            self._cipher = AESGCM(key)
        return self._cipher

    def _read(self) -> bytes | None:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            if os.fstat(fd).st_mode & 0o077:
                os.fchmod(fd, 0o600)
            return os.read(fd, _KEY_BYTES + 1)
        finally:
            os.close(fd)

    def _make(self) -> bytes:
        # Written under another name first: a crash or a full disk must not leave a key that is cut off.
        made = self._path.with_name(f"{self._path.name}.{secrets.token_hex(8)}")
        key = secrets.token_bytes(_KEY_BYTES)
        try:
            fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, key)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(made, self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(made)
            raise
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return key
