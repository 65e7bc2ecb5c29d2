"""What a step is known by: the hash of all that it reads. And steps without variables in them, as keys have them."""

from __future__ import annotations

import hashlib

import msgspec

from farcall.builder.requests import State
from farcall.spec.expansion import expand, expand_text
from farcall.spec.image import Copy, ImageConfig

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FORMAT = b"1"  # of keys: another one, and nothing that was done before counts any more


def key_of(*parts: bytes | State) -> str:
    """The key of a step: what it does, and the state that it begins with."""
    hasher = hashlib.sha256(_FORMAT)
    for part in parts:
        data = part if isinstance(part, bytes) else msgspec.msgpack.encode(part, order="sorted")
        hasher.update(len(data).to_bytes(8, "big") + data)
    return hasher.hexdigest()


def python_key_of(state: State) -> str:
    """Which Python an image has depends on its files and its PATH."""
    return key_of(state.tree.encode(), state.config.env.get("PATH", DEFAULT_PATH).encode())


def variables_of(config: ImageConfig) -> dict[str, str]:
    """What `$NAME` in a Dockerfile stands for."""
    return config.args | config.env


def without_variables(step: Copy, config: ImageConfig) -> Copy:
    """A COPY without variables in it."""
    variables = variables_of(config)
    files = tuple(
        msgspec.structs.replace(file, text=expand_text(file.text, variables), expand=False) if file.expand else file
        for file in step.files
    )
    if not step.expand:
        return msgspec.structs.replace(step, files=files)

    def word(text: str) -> str:
        return expand(text, variables, step.expand)

    return msgspec.structs.replace(
        step,
        files=files,
        sources=tuple(word(source) for source in step.sources),
        target=word(step.target),
        owner=word(step.owner),
        expand="",
    )
