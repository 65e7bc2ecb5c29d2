"""Where a tier is, as a setting says it."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from farcall.content.attempts import Timing
from farcall.content.tiers.directory import DirectoryTier
from farcall.content.tiers.fetcher import TIMING
from farcall.content.tiers.local import SCHEME, LocalTier
from farcall.content.tiers.object_store import ObjectStoreTier
from farcall.content.tiers.tier import WritableTier
from farcall.errors import InvalidError


def open_place(place: str, endpoint: str = "", timing: Timing = TIMING) -> WritableTier:
    """The tier at `place`: an absolute path or file:// URL of a directory; s3://, gs:// or az:// with a bucket and a
    prefix; unix:PATH#NAME for what a worker of this machine gives. Nothing is asked of it yet.

    Raises `InvalidError` for what is none of these.
    """
    if place.startswith("/"):
        return DirectoryTier(Path(place))
    if place.startswith("file:"):
        parts = urlsplit(place)
        if parts.netloc or not parts.path.startswith("/"):
            raise InvalidError(f"{place!r} is no directory: file:///path")
        return DirectoryTier(Path(unquote(parts.path)))
    if place.startswith(SCHEME):
        return LocalTier(place)
    return ObjectStoreTier(place, endpoint, timing)
