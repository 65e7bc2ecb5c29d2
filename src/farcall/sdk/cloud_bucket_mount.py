"""`CloudBucketMount`: a bucket of an object store as a folder."""

from __future__ import annotations

from farcall.errors import InvalidError
from farcall.sdk.secret import Secret
from farcall.sdk.unimplemented import Placeholder

__all__ = ["CloudBucketMount"]


class CloudBucketMount(Placeholder):
    """A bucket of an S3-compatible object store, to mount in containers. Not available yet."""

    def __init__(
        self,
        bucket_name: str,
        bucket_endpoint_url: str | None = None,
        key_prefix: str | None = None,
        secret: Secret | None = None,
        oidc_auth_role_arn: str | None = None,
        read_only: bool = False,
        requester_pays: bool = False,
        force_path_style: bool = False,
    ) -> None:
        if key_prefix is not None and not key_prefix.endswith("/"):
            raise InvalidError(f"CloudBucketMount: key_prefix={key_prefix!r} does not end in a slash")
        if requester_pays and secret is None:
            raise ValueError("CloudBucketMount: requester_pays needs a secret with credentials")
        super().__init__(bucket_name)
        self.bucket_name = bucket_name
        self.read_only = read_only
