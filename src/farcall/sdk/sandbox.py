"""`Sandbox`: a container for programs, in place of functions."""

from __future__ import annotations

from farcall.sdk.unimplemented import Placeholder

__all__ = ["Probe", "Sandbox", "SandboxSnapshot"]


class Sandbox(Placeholder):
    """A container that runs programs one by one, as they are asked for. Not available yet."""


class SandboxSnapshot(Placeholder):
    """A sandbox's memory and files, to start others from. Not available yet."""


class Probe(Placeholder):
    """How to find out whether a sandbox is ready. Not available yet."""

    @classmethod
    def with_tcp(cls, port: int, *, interval_ms: int = 100) -> Probe:
        """Ready when something listens on `port`."""
        return cls._made("with_tcp", port)

    @classmethod
    def with_exec(cls, *argv: str, interval_ms: int = 100) -> Probe:
        """Ready when the program ends with status 0."""
        return cls._made("with_exec", *argv)
