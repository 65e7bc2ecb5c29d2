"""A build: one image being made for one program."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from farcall import errors
from farcall.builder.oci.endpoint import Access
from farcall.builder.progress import Progress
from farcall.builder.requests import State
from farcall.content.lease import Lease


class NotBroughtError(errors.FarcallError):
    """What was built elsewhere cannot be had from there."""


class Build:
    """One image being built for one program."""

    def __init__(
        self,
        lease: Lease,
        secrets: Mapping[str, str],
        force: bool,
        progress: Progress,
        access: Access,
        *,
        alone: bool = False,
    ) -> None:
        self.lease = lease
        self.secrets = secrets
        self.force = force
        self.progress = progress
        self.access = access
        self.alone = alone  # nothing is taken from elsewhere
        self.stages: dict[bytes, State] = {}

    def values(self, names: Mapping[str, str]) -> dict[str, str]:
        """The values of secrets by the variables they go into. Raises InvalidError for a handle that has none."""
        missing = [name for name, handle in names.items() if handle not in self.secrets]
        if missing:
            raise errors.InvalidError(f"no value came along for the secret variables {', '.join(missing)}")
        return {name: self.secrets[handle] for name, handle in names.items()}

    @contextmanager
    def fetching(self) -> Generator[None]:
        """What fails in here may do so because it is elsewhere: NotBroughtError, after which the build begins anew
        without what is elsewhere, where that may help."""
        try:
            yield
        except (errors.ResourceExhaustedError, errors.InternalError):
            raise
        except errors.FarcallError as error:
            if self.alone:
                raise
            raise NotBroughtError(str(error)) from error
