"""The login of Amazon's Elastic Container Registry: an AWS account's keys are exchanged for a user and a password.

Requests are signed with Signature Version 4:
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit

import msgspec

from farcall.builder.oci.credentials import Credentials
from farcall.builder.oci.transport import Transport, check_transient, complaint, describe, read_body
from farcall.content.attempts import TransientError
from farcall.errors import AuthError, InvalidError, RegistryError

_ALGORITHM = "AWS4-HMAC-SHA256"
_TARGET = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"
_HOST = re.compile(r"\d{12}\.dkr[.-]ecr(?:-fips)?\.([a-z0-9-]+)\.(amazonaws\.com(?:\.cn)?|on\.aws)")


class Keys(NamedTuple):
    """An AWS account's keys; `session` is "" for those that do not expire."""

    identity: str
    secret: str
    session: str = ""

    def __repr__(self) -> str:
        return f"Keys({self.identity!r})"


def are_keys(values: Mapping[str, str]) -> bool:
    """Whether a Secret's values are an AWS account's keys."""
    return "AWS_ACCESS_KEY_ID" in values and "AWS_SECRET_ACCESS_KEY" in values


def log_in(values: Mapping[str, str], registry: str, transport: Transport) -> Credentials:
    """User and password for `registry`, by the keys in a Secret's values: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and,
    with temporary ones, AWS_SESSION_TOKEN. They are good for 12 hours.

    The region is that in the registry's name, else AWS_REGION or AWS_DEFAULT_REGION; AWS_ENDPOINT_URL_ECR names another
    place to ask. Raises AuthError where AWS refuses, InvalidError where no region is known.
    """
    matched = _HOST.fullmatch(registry)
    region = matched[1] if matched else values.get("AWS_REGION") or values.get("AWS_DEFAULT_REGION")
    if not region:
        raise InvalidError(
            f"{registry} is no name of an Amazon ECR registry (<account>.dkr.ecr.<region>.amazonaws.com), and the "
            "secret has no AWS_REGION. For other registries a secret has REGISTRY_USERNAME and REGISTRY_PASSWORD"
        )
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    url = values.get("AWS_ENDPOINT_URL_ECR") or f"https://api.ecr.{region}.{domain}/"
    transport.check_secure(url, "AWS_ENDPOINT_URL_ECR is")
    keys = Keys(values["AWS_ACCESS_KEY_ID"], values["AWS_SECRET_ACCESS_KEY"], values.get("AWS_SESSION_TOKEN", ""))
    attempts = transport.attempts()
    while True:
        try:
            body = _ask(url, keys, region, transport)
            break
        except TransientError as failure:
            attempts.failed(failure)
    try:
        token = msgspec.json.decode(body, type=_Answer).authorization_data[0].authorization_token
        username, _, password = base64.b64decode(token, validate=True).decode().partition(":")
    except (msgspec.DecodeError, IndexError, binascii.Error, UnicodeDecodeError) as error:
        raise RegistryError(f"Amazon ECR ({url}) answered without a token: {error}") from error
    return Credentials(f"those of AWS key {keys.identity}", username, password)


def _ask(url: str, keys: Keys, region: str, transport: Transport) -> bytes:
    body = b"{}"
    headers = {"content-type": "application/x-amz-json-1.1", "x-amz-target": _TARGET}
    signed = sign("POST", url, headers, body, keys, region, "ecr", datetime.now(UTC))
    with transport.request("POST", url, signed, content=body) as response:
        check_transient(response, "no login at Amazon ECR")
        if response.status_code != 200:
            answered = f"{describe(response.status_code)}{complaint(response)}"
            raise AuthError(
                f"Amazon ECR in {region} refuses the AWS key {keys.identity} ({answered}). Check the secret's "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, that they may call ecr:GetAuthorizationToken, and this "
                "machine's clock"
            )
        return read_body(response, transport.timing, transport.stop)


def sign(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    keys: Keys,
    region: str,
    service: str,
    now: datetime,
) -> dict[str, str]:
    """`headers`, whose names are lower case, with those that sign the request for `service` in `region` at `now`.

    All of them are signed, and the host.
    """
    parts = urlsplit(url)
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {**headers, "x-amz-date": stamp, **({"x-amz-security-token": keys.session} if keys.session else {})}
    signed = {**headers, "host": parts.netloc}
    names = ";".join(sorted(signed))
    query = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in parse_qsl(parts.query, True)
    )
    request = "\n".join(
        (
            method,
            quote(parts.path or "/", safe="/-_.~"),
            "&".join(f"{name}={value}" for name, value in query),
            *(f"{name}:{' '.join(signed[name].split())}" for name in sorted(signed)),
            "",
            names,
            hashlib.sha256(body).hexdigest(),
        )
    )
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    text = "\n".join((_ALGORITHM, stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{keys.secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"{keys.identity}/{scope}"
    authorization = f"{_ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "authorization": authorization}


class _Data(msgspec.Struct, rename="camel"):
    authorization_token: str


class _Answer(msgspec.Struct, rename="camel"):
    authorization_data: tuple[_Data, ...]
