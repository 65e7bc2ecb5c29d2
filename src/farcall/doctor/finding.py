"""One thing that farcall can use, as found on this machine."""

from typing import Literal, NamedTuple

Status = Literal["ok", "limited", "missing"]


class Finding(NamedTuple):
    """`detail` is what was found or what the kernel said; `remedy` the one line that gets it, "" where nothing need be
    or can be done. Without a `required` one there are no containers, only `--runtime process`."""

    group: str
    name: str
    status: Status
    purpose: str
    detail: str = ""
    remedy: str = ""
    required: bool = False
