"""Operating system and processor that an image is for, in the words Go has for them."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from farcall.errors import NotFoundError

# What uname calls a machine, and the architecture and variant of it.
_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv8l": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "i586": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}
_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7", "amd64": "v1"}  # what no variant means


class Platform(NamedTuple):
    """For example linux/amd64, or linux/arm64 with variant "v8"."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, self))

    def rank(self, image: "Platform") -> int | None:
        """How well an image for `image` suits this platform: 0 best, None not at all.

        A variant is a level of the processor's instructions: images of this level and of lower ones run.
        """
        if (image.os, image.architecture) != (self.os, self.architecture):
            return None
        ours, theirs = _level(self), _level(image)
        return ours - theirs if theirs <= ours else None


def this_machine() -> Platform:
    """The platform whose images run here."""
    machine = os.uname().machine
    return Platform("linux", *_MACHINES.get(machine, (machine, "")))


def choose(wanted: Platform, offered: Sequence[Platform], name: str) -> int:
    """The place in `offered` of the image that suits `wanted` best, the first of equals.

    Raises NotFoundError that lists what there is; `name` says whose platforms they are.
    """
    ranks = {place: rank for place, image in enumerate(offered) if (rank := wanted.rank(image)) is not None}
    if not ranks:
        raise NotFoundError(
            f"{name} has no image for {wanted}, this machine's platform. It has: {listed(offered)}. "
            "Name another tag or another image"
        )
    return min(ranks, key=lambda place: (ranks[place], place))


def listed(platforms: Iterable[Platform]) -> str:
    """Platforms for messages, those of attestations and other attachments left out."""
    return ", ".join(sorted({str(one) for one in platforms if one.os not in ("", "unknown")})) or "none"


def _level(platform: Platform) -> int:
    variant = platform.variant or _DEFAULT_VARIANTS.get(platform.architecture, "")
    digits = variant.removeprefix("v")
    return int(digits) if digits.isdecimal() else 0
