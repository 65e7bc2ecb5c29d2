"""Ids made by clients. A prefix says what an id names: `ap-` app, `fu-` function, `cs-` class, `fc-` call."""

from __future__ import annotations

import itertools
import os

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LENGTH = 22  # 131 bits


def _text(number: int) -> str:
    digits: list[str] = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(digits)


_process = ""
_count = itertools.count(1)


def _renew() -> None:
    """Makes this process's ids its own."""
    global _process, _count
    _process = _text(int.from_bytes(os.urandom(17), "big"))
    _count = itertools.count(1)


_renew()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def new_id(prefix: str) -> str:
    """A new id: `prefix`, 22 random letters and digits that are this process's, and a count.

    Every call makes one; this costs a tenth of drawing all of it anew.
    """
    return f"{prefix}-{_process}{next(_count):x}"


def function_id(app_id: str, name: str, *, is_class: bool) -> str:
    """The id of a function or class of an app. It follows from the app's id and the name, so that a container can call
    the other functions of its app without asking anyone for their ids."""
    return f"{'cs' if is_class else 'fu'}-{_digest(f'{app_id}/{name}'.encode())}"


def variant_id(base_id: str, changes: bytes) -> str:
    """The id of a variant of the function or class `base_id`. It follows from what is changed."""
    return f"{base_id[:2]}-{_digest(base_id.encode() + changes)}"


def _digest(data: bytes) -> str:
    from _blake2 import blake2b  # hashlib would load OpenSSL for it

    return _text(int.from_bytes(blake2b(data, digest_size=17).digest(), "big"))
