"""Ids made by clients. A prefix says what an id names: `ap-` app, `fu-` function, `cs-` class, `fc-` call."""

from __future__ import annotations

import os

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LENGTH = 22  # 131 bits


def _text(number: int) -> str:
    digits: list[str] = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(digits)


def new_id(prefix: str) -> str:
    """A random id, `prefix` and 22 letters and digits."""
    return f"{prefix}-{_text(int.from_bytes(os.urandom(17), 'big'))}"


def function_id(app_id: str, name: str, *, is_class: bool) -> str:
    """The id of a function or class of an app. It follows from the app's id and the name, so that a container can call
    the other functions of its app without asking anyone for their ids."""
    from _blake2 import blake2b  # hashlib would load OpenSSL for it

    digest = blake2b(f"{app_id}/{name}".encode(), digest_size=17).digest()
    return f"{'cs' if is_class else 'fu'}-{_text(int.from_bytes(digest, 'big'))}"
