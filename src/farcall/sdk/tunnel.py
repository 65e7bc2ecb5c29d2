"""`Tunnel` and `forward`: a port of a container, reachable from outside."""

from __future__ import annotations

from typing import Any

from farcall.errors import InvalidError
from farcall.sdk.unimplemented import refuse

__all__ = ["Tunnel", "forward"]


class Tunnel:
    """Where a forwarded port can be reached."""

    def __init__(self, host: str, port: int, unencrypted_host: str = "", unencrypted_port: int = 0) -> None:
        self.host = host
        self.port = port
        self.unencrypted_host = unencrypted_host
        self.unencrypted_port = unencrypted_port

    @property
    def url(self) -> str:
        """The port as an https URL."""
        return f"https://{self.host}" + (f":{self.port}" if self.port != 443 else "")

    @property
    def tls_socket(self) -> tuple[str, int]:
        """Host and port for TLS connections."""
        return (self.host, self.port)

    @property
    def tcp_socket(self) -> tuple[str, int]:
        """Host and port for plain TCP connections."""
        if not self.unencrypted_host:
            raise InvalidError("this tunnel is encrypted only; open it with forward(port, unencrypted=True)")
        return (self.unencrypted_host, self.unencrypted_port)


def forward(port: int, *, unencrypted: bool = False, h2_enabled: bool = False, client: Any = None) -> Any:
    """Makes a port of this container reachable from outside, for the time of a `with` block. Not available yet."""
    refuse("forward")
