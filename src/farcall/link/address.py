"""Where a server on another machine is: `ssh://[user@]host[:port]`."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from farcall.errors import InvalidError

_HOST = re.compile(r"[A-Za-z0-9_.:%-]+")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.$-]*")


class Address(NamedTuple):
    """A machine as `ssh` reaches it. `host` may be a name of the user's ssh configuration."""

    user: str
    host: str
    port: int | None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises InvalidError for what is no such address."""
        try:
            found = urlsplit(url)
            port = found.port
        except ValueError as error:
            raise InvalidError(f"the server {url!r} is no address: {error}") from None
        user, _, host = found.netloc.rpartition("@")
        host = host.removesuffix(f":{port}") if port is not None else host
        host = host.removeprefix("[").removesuffix("]")
        right = found.scheme == "ssh" and found.path in ("", "/") and not found.query and not found.fragment
        # What ssh would take for an option, or a shell for more than a word, is no name.
        if not right or host.startswith("-") or not _HOST.fullmatch(host) or (user and not _USER.fullmatch(user)):
            raise InvalidError(
                f"the server {url!r} is no address: write ssh://user@host, ssh://host or ssh://host:port; the name of "
                "a profile goes with --profile"
            )
        return cls(user, host, port)

    @property
    def arguments(self) -> list[str]:
        """The destination, for `ssh`'s command line."""
        port = [] if self.port is None else ["-p", str(self.port)]
        return [*port, "--", f"{self.user}@{self.host}" if self.user else self.host]

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{self.user + '@' if self.user else ''}{host}{'' if self.port is None else f':{self.port}'}"
