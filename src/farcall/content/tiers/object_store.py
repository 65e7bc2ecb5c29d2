"""An object store as a tier: S3 and what is compatible with it, Google Cloud Storage, Azure Blob Storage.

`obstore` is imported here and nowhere else, when the first blob is asked for: nobody else waits for it.
"""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from farcall.content.attempts import Timing, TransientError
from farcall.content.tiers import aws
from farcall.content.tiers.tier import MAX_BLOB_BYTES
from farcall.errors import (
    AuthError,
    ConnectionError,
    CorruptedError,
    FarcallError,
    InvalidError,
    NotFoundError,
    PermissionDeniedError,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore

SCHEMES = {
    "s3": "S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, or the machine's role",
    "gs": "Google Cloud: GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
    "az": "Azure: AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or the machine's identity",
}
_LONGEST = 10  # times the time limit for silence that one blob may take in all


class ObjectStoreTier:
    """Blobs as objects of a bucket, beneath a prefix."""

    def __init__(self, url: str, endpoint: str, timing: Timing) -> None:
        """`url` is `scheme://bucket/prefix`; `endpoint` ("https://host:port") says where a store is that speaks
        as the cloud's own does.

        Of `timing` the limits for connecting and for silence hold; trying again is the affair of who asks. Raises
        `InvalidError` for a URL of another kind.
        """
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.netloc or parts.query or parts.fragment or "@" in parts.netloc:
            raise InvalidError(
                f"{url!r} is no object store: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix"
            )
        if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
            raise InvalidError(f"{endpoint!r} is no endpoint of an object store: https://host:port")
        self._url = url.rstrip("/")
        self._scheme = parts.scheme
        self._endpoint = endpoint
        self._timing = timing
        self._lock = threading.Lock()
        self._opened: ObjectStore | None = None

    @property
    def title(self) -> str:
        return f"the object store {self._url}" + (f" at {self._endpoint}" if self._endpoint else "")

    def get(self, name: str) -> bytes:
        import obstore

        store = self._store()
        try:
            found = obstore.get(store, name)
            if (size := found.meta["size"]) > MAX_BLOB_BYTES:
                raise CorruptedError(f"{self.title} has a {name} of {size:,} bytes, which is no blob of ours")
            return found.bytes().to_bytes()
        except FarcallError:
            raise
        except Exception as error:
            raise self._failure(error, name) from error

    def put(self, name: str, data: bytes) -> None:
        import obstore

        store = self._store()
        try:
            obstore.put(store, name, data)
        except Exception as error:
            raise self._failure(error, name) from error

    def _store(self) -> ObjectStore:
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> ObjectStore:
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        silence = timedelta(seconds=self._timing.read)
        client: dict[str, Any] = {
            "connect_timeout": timedelta(seconds=self._timing.connect),
            "read_timeout": silence,
            "timeout": silence * _LONGEST,
        }
        config: Any = aws.from_files() if self._scheme == "s3" else {}
        if self._endpoint:
            config["base_url" if self._scheme == "gs" else "endpoint"] = self._endpoint
            client["allow_http"] = self._endpoint.startswith("http://")
        if self._scheme == "s3":
            config["checksum_algorithm"] = "SHA256"  # what arrives there damaged is refused there
        try:
            options = cast("ClientConfig", client)
            return from_url(self._url, config=config, client_options=options, retry_config={"max_retries": 0})
        except (BaseError, ValueError) as error:
            raise InvalidError(f"{self.title} cannot be used: {_said(error)}") from error

    def _failure(self, error: Exception, name: str) -> FarcallError | TransientError:
        from obstore import exceptions

        match error:
            case FileNotFoundError():
                return NotFoundError(f"{self.title} has no {name}, or there is no such bucket")
            case PermissionError() | exceptions.PermissionDeniedError():
                return PermissionDeniedError(
                    f"{self.title} does not let this machine have {name}. Give the credentials the right to list the "
                    f"bucket, and to read and write what is beneath the prefix ({SCHEMES[self._scheme]})"
                )
            case exceptions.UnauthenticatedError():
                return AuthError(
                    f"{self.title} does not know the credentials of this machine ({SCHEMES[self._scheme]})"
                )
            case exceptions.BaseError() | OSError():
                # All else that is said by its text alone: a status, a time limit, a connection that broke.
                return TransientError(ConnectionError, f"{self.title} failed: {_said(error)}", "Try again later")
            case _:
                return ConnectionError(f"{self.title} failed: {_said(error)}")


def _said(error: Exception) -> str:
    """The gist of what a library says: its first line, without the cause of the cause."""
    text = " ".join(str(error).split("Debug source:")[0].split())
    return text[:300] or type(error).__name__
