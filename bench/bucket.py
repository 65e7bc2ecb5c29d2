"""The bucket that measurements keep images in, in an S3 server of their own."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

from tests.content.tiers.seaweedfs import KEYS

if TYPE_CHECKING:
    from obstore.store import S3Store

NAME = "farcall"
_SECONDS = 30.0  # until a server that has just begun takes what is put there
_SIGNED_PUT = ("curl", "-sf", "-X", "PUT", "--aws-sigv4", "aws:amz:us-east-1:s3", "-u", "writer:secret")


def open_bucket(endpoint: str) -> S3Store:
    """The bucket, with the keys of this process's environment."""
    from obstore.store import S3Store

    return S3Store(NAME, endpoint=endpoint, client_options={"allow_http": True})


def make_bucket(endpoint: str) -> None:
    """Makes it, unless it is there from an earlier round, and returns when it can be written to. This process's
    environment has the keys from then on."""
    import obstore

    os.environ |= KEYS
    bucket = open_bucket(endpoint)
    deadline = time.monotonic() + _SECONDS
    subprocess.run([*_SIGNED_PUT, f"{endpoint}/{NAME}"], check=False)
    while True:
        try:
            obstore.put(bucket, "probe", b"here")
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
