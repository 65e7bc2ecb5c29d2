"""What workers join with: where the server is, by what it is known, and a secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from pathlib import Path
from typing import Literal

import msgspec

from farcall import errors
from farcall.cluster.authority import write_private
from farcall.wire.workers import TokenListing

PREFIX = "fcw1-"
LONGEST_DAYS = 3650  # that a token may be good for
_HOST = re.compile(r"[^\s\0/]+")
_PORT = re.compile(r"[0-9]{1,5}")
_SHOWN = 100  # characters of what is no address


class Token(msgspec.Struct, frozen=True, array_like=True):
    """A token, open. `address` is "host:port"."""

    token_id: str
    secret: str
    address: str
    fingerprint: str

    def encode(self) -> str:
        """As people pass it on."""
        return PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Token:
        """Raises InvalidError for what is none."""
        text = text.strip()
        body = text.removeprefix(PREFIX)
        why = f"it does not begin with {PREFIX}" if body == text else "it is not whole, or has been changed"
        try:
            if body == text:
                raise ValueError(why)
            token = msgspec.msgpack.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=cls)
            split_address(token.address)
            return token
        except (ValueError, msgspec.DecodeError, errors.InvalidError):
            raise errors.InvalidError(
                f"that is no token of a farcall server ({why}): copy the whole of what `farcall worker token create` "
                "printed there"
            ) from None


class _Kept(msgspec.Struct):
    token_id: str
    label: str
    secret: str  # its hash
    created_at: float
    expires_at: float
    is_revoked: bool = False
    joined: int = 0


class Tokens:
    """The tokens of one server, in a file. Of secrets it has hashes only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokens: dict[str, _Kept] = {}
        if path.exists():
            found = msgspec.json.decode(path.read_bytes(), type=list[_Kept])
            self._tokens = {one.token_id: one for one in found}

    def create(self, label: str, lifetime: float, address: str, fingerprint: str, now: float) -> tuple[Token, float]:
        """A new token and when it expires; times are seconds since the epoch. Raises InvalidError for an address that
        is none, and a lifetime, in seconds, that is."""
        split_address(address)
        if not 0 < lifetime <= LONGEST_DAYS * 24 * 3600:
            raise errors.InvalidError(f"a token is good for at most {LONGEST_DAYS} days: write a shorter --expires")
        token = Token(f"wt-{os.urandom(6).hex()}", os.urandom(24).hex(), address, fingerprint)
        kept = _Kept(token.token_id, label, _hash(token.secret), now, now + lifetime)
        self._tokens[token.token_id] = kept
        self._save()
        return token, kept.expires_at

    def check(self, token_id: str, secret: str, now: float) -> None:
        """Somebody wants to join. Raises AuthError for a token that is unknown, wrong, revoked or expired."""
        kept = self._tokens.get(token_id)
        if kept is None or not hmac.compare_digest(kept.secret, _hash(secret)):
            raise errors.AuthError(f"this server has not issued the token {token_id}: {_NEW}")
        state = _state(kept, now)
        if state != "valid":
            raise errors.AuthError(f"the token {token_id} {'has ' if state == 'expired' else 'was '}{state}: {_NEW}")

    def used(self, token_id: str) -> None:
        """Somebody has joined."""
        self._tokens[token_id].joined += 1
        self._save()

    def revoke(self, token_id: str) -> None:
        """Nobody joins with it any more. Raises NotFoundError."""
        kept = self._tokens.get(token_id)
        if kept is None:
            raise errors.NotFoundError(f"there is no token {token_id}; `farcall worker token list` shows them")
        kept.is_revoked = True
        self._save()

    def all(self, now: float) -> list[TokenListing]:
        """All of them, oldest first."""
        return [
            TokenListing(one.token_id, one.label, one.created_at, one.expires_at, _state(one, now), one.joined)
            for one in self._tokens.values()
        ]

    def _save(self) -> None:
        write_private(self._path, msgspec.json.encode(list(self._tokens.values())))


_NEW = "`farcall worker token create` there makes another"


def _state(kept: _Kept, now: float) -> Literal["valid", "revoked", "expired"]:
    if kept.is_revoked:
        return "revoked"
    return "valid" if now < kept.expires_at else "expired"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[v6]:port". Raises InvalidError."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not _HOST.fullmatch(host) or not _is_name(host) or not _PORT.fullmatch(port) or int(port) > 65535:
        shown = address if len(address) <= _SHOWN else f"{address[:_SHOWN]}..."
        raise errors.InvalidError(f"{shown!r} is no address: HOST:PORT, such as 10.0.0.5:7443 or [fd00::5]:7443")
    return host, int(port)


def _is_name(host: str) -> bool:
    """Whether a resolver can be asked for it, which encodes it so and raises what is no OSError."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True
