"""GPUs that a function asks for: `gpu="H100"`, `"A100-80GB:2"`, `"any"`, or a list of those in order of preference."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from farcall.errors import InvalidError

ANY = "any"
MOST = 64  # of one container: more than any machine has

_FORM = re.compile(r"([A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)!?(?::([0-9]+))?")


class GpuRequest(msgspec.Struct, frozen=True):
    """So many GPUs of one type, of one machine, for one container alone. `type` is in capitals, or "any"."""

    type: str
    count: int = 1

    def __str__(self) -> str:
        return self.type if self.count == 1 else f"{self.type}:{self.count}"

    def accepts(self, kind: str) -> bool:
        """Whether GPUs of that type will do. A type named without its variant takes every variant: "A100" takes
        "A100-40GB" and "A100-80GB"."""
        return self.type in (ANY, kind) or kind.startswith(f"{self.type}-")


def parse(where: str, value: Any) -> tuple[GpuRequest, ...]:
    """What `gpu=` says, the most wanted first; () for none. `where` is for messages.

    A type is read without regard to case; the "!" behind one, which in the reference API rules out an upgrade, changes
    nothing: there are none here.

    Raises:
        InvalidError: no text of this form, or a count that no machine has.
    """
    if value is None or value == "" or value == []:
        return ()
    if isinstance(value, str):
        return (_one(where, value),)
    if not isinstance(value, (list, tuple)):
        raise InvalidError(f'{where}: gpu={value!r} is neither a type such as "H100:2" nor a list of types')
    return tuple(dict.fromkeys(_one(where, each) for each in cast("Sequence[Any]", value)))


def _one(where: str, value: Any) -> GpuRequest:
    match = _FORM.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidError(f'{where}: gpu={value!r} is no type such as "T4", "A100-80GB" or "any", with ":2" for two')
    count = int(match[2] or 1)
    if not 1 <= count <= MOST:
        raise InvalidError(f"{where}: gpu={value!r} asks for {count} GPUs; a container has 1 to {MOST}")
    kind = match[1]
    return GpuRequest(ANY if kind.lower() == ANY else kind.upper(), count)


# Words of a product's name that do not tell one type from another.
_NOISE = re.compile(
    r"NVIDIA|TESLA|GEFORCE|QUADRO|GENERATION|SERVER|WORKSTATION|EDITION|BLACKWELL|PCIE|NVL|SXM\d*|HBM\w*|\d+GB|GPU|LAPTOP"
)
_IN_SIZES = ("A100", "V100")  # which are sold with more than one size of memory, and asked for by it


def type_of(product: str, memory: int) -> str:
    """What a GPU is asked for by: "A100-80GB" for "NVIDIA A100-SXM4-80GB", "RTX-4090" for "NVIDIA GeForce RTX 4090".
    `memory` is MiB."""
    words = [word for word in re.split(r"[\s-]+", product.upper()) if word and not _NOISE.fullmatch(word)]
    kind = re.sub(r"[^A-Z0-9-]", "", "-".join(words)) or "GPU"
    if kind in _IN_SIZES:
        size = re.search(r"(\d+)GB", product.upper())
        kind += f"-{size[1] if size else round(memory / 1024)}GB"
    return kind


def parse_simulated(value: str) -> dict[str, int]:
    """What `--simulate-gpu` says, "T4=4,H100=8": how many of each type. Raises InvalidError."""
    counts: dict[str, int] = {}
    for part in value.split(","):
        match = re.fullmatch(r"([A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)=([0-9]+)", part.strip())
        if match is None:
            raise InvalidError(f'simulate_gpu={value!r} is not of the form "T4=4,H100=8"')
        kind, count = match[1].upper(), int(match[2])
        if kind == ANY.upper() or not 1 <= count <= MOST or kind in counts:
            raise InvalidError(f"simulate_gpu={value!r}: a type stands there once, and there are 1 to {MOST} of it")
        counts[kind] = count
    return counts


def format_simulated(counts: Mapping[str, int]) -> str:
    """The same as text, in one form for equal ones."""
    return ",".join(f"{kind}={count}" for kind, count in sorted(counts.items()))
