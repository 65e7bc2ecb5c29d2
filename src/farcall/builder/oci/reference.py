"""Names of images in registries: `[registry/]repository[:tag][@digest]`, as Docker's reference grammar has it."""

import re
from typing import NamedTuple

from farcall.errors import InvalidError

DOCKER_IO = "docker.io"

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_HOST = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:.]+\])"
    r"(?::[0-9]{1,5})?"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_LONGEST_NAME = 255  # characters of registry and repository together


class Reference(NamedTuple):
    """An image in a registry. A digest, where there is one, decides; the tag is then only what it was known by."""

    registry: str  # host[:port], lower case; "docker.io" is Docker Hub
    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """The whole name, nothing left to defaults; `parse` reads it."""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"

    @property
    def version(self) -> str:
        """What a registry is asked for: the digest, else the tag."""
        return self.digest or self.tag


def parse(text: str) -> Reference:
    """The reference that `text` means. Without a registry it is docker.io's, there without a "/" `library/...`; without
    tag and digest it is tagged "latest". Raises InvalidError that says what is wrong with it.
    """
    if "://" in text:
        raise _wrong(text, f"it is no URL: leave out {text.partition('://')[0]!r}://")
    rest, _, digest = text.partition("@")
    if "@" in text and not is_digest(digest):
        raise _wrong(text, "what follows the @ is no digest: sha256: and 64 lower-case hexadecimal digits")
    name, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        name, tag = rest, ""  # that colon, if any, was of the registry's port or address
    elif not _TAG.fullmatch(tag):
        raise _wrong(text, f"{tag!r} is no tag: at most 128 letters, digits, _, . and -, the first no . or -")
    first, slash, path = name.partition("/")
    if slash and (any(sign in first for sign in ".:") or first == "localhost"):
        registry = first
        if not _HOST.fullmatch(registry):
            raise _wrong(text, f"{registry!r} is no host, or host and port")
    else:
        registry, path = DOCKER_IO, name
    registry = registry.lower()
    if registry in ("index.docker.io", "registry-1.docker.io"):
        registry = DOCKER_IO
    if registry == DOCKER_IO and path and "/" not in path:
        path = f"library/{path}"
    for component in path.split("/"):
        if _COMPONENT.fullmatch(component):
            continue
        if not component:
            raise _wrong(text, "a part of its name is empty")
        if component != component.lower():
            raise _wrong(text, f"repositories are lower case: {path.lower()!r}")
        raise _wrong(
            text,
            f"{component!r}: parts of a repository's name are lower-case letters and digits, with ., _ or - between",
        )
    if len(registry) + 1 + len(path) > _LONGEST_NAME:
        raise _wrong(text, f"its name is longer than {_LONGEST_NAME} characters")
    return Reference(registry, path, tag or ("" if digest else "latest"), digest)


def python_slim(version: str) -> str:
    """The name of Docker's official image of Debian bookworm slim with Python `version` ("3.12", "3.12.4")."""
    return str(parse(f"python:{version}-slim-bookworm"))


def is_digest(text: str) -> bool:
    """Whether `text` is a digest of a kind that can be verified here: sha256:<hex> or sha512:<hex>."""
    return _DIGEST.fullmatch(text) is not None


def _wrong(text: str, why: str) -> InvalidError:
    return InvalidError(
        f"{text!r} is no name of an image: {why}. A name is [registry/]repository[:tag][@digest], for example "
        "python:3.12-slim or ghcr.io/owner/name:1.0"
    )
