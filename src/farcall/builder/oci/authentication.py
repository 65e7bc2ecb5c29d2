"""How a registry's question who we are is answered: Basic, or a token from the server that it names.

https://distribution.github.io/distribution/spec/auth/token/ and, for identity tokens, .../auth/oauth/.
"""

import re
import threading
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple
from urllib.parse import urlencode

import httpx
import msgspec

from farcall.builder.oci.credentials import Credentials
from farcall.builder.oci.transport import Transport, check_transient, complaint, describe, read_body, shown
from farcall.errors import AuthError, PermissionDeniedError, RegistryError

_TOKEN_SECONDS = 60.0  # how long a token is good for that does not say so
_MARGIN_SECONDS = 10.0
_CLIENT = "farcall"

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*(?:,|$)')
# A scheme with parameters, or one alone, perhaps with something else (Negotiate abc==) up to the next comma.
_SCHEME = re.compile(rf'[\s,]*+({_TOKEN})(?:\s++(?={_TOKEN}\s*=\s*(?:"|{_TOKEN}))|(?!\s*=)[^,]*(?:,|$))')


class Challenge(NamedTuple):
    """One way that a registry can be answered: the scheme, in lower case, and its parameters."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """All challenges of the WWW-Authenticate headers of an answer (RFC 9110, 11.6.1), as far as they can be read."""
    challenges: list[Challenge] = []
    for header in headers:
        place = 0
        while scheme := _SCHEME.match(header, place):
            place = scheme.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(header, place):
                name, quoted, plain = parameter.groups()
                parameters[name.lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                place = parameter.end()
            challenges.append(Challenge(scheme[1].lower(), parameters))
    return challenges


class Authenticator:
    """What to send to one registry for one repository. Threads may share it."""

    def __init__(self, transport: Transport, find: Callable[[], Credentials], repository: str) -> None:
        self._transport = transport
        self._find = find
        self._scope = f"repository:{repository}:pull"
        self._lock = threading.Lock()
        self._header: str | None = None
        self._good_until = float("inf")

    @cached_property
    def credentials(self) -> Credentials:
        """Who we are. Found out when a registry first asks: that can take a program, or another server."""
        return self._find()

    def header(self) -> str | None:
        """What to send as Authorization, as far as is known."""
        with self._lock:
            if self._transport.timing.clock() >= self._good_until:
                self._header = None
            return self._header

    def answer(self, response: httpx.Response, sent: str | None) -> bool:
        """Whether `header` has something new to send after `response`, a 401 to `sent`.

        Raises AuthError or PermissionDeniedError where the token server refuses, RegistryError where it cannot be used,
        `TransientError` where it may be asked again.
        """
        with self._lock:
            if self._header is not None and self._header != sent:
                return True  # another thread was here first
            challenges = {
                one.scheme: one.parameters for one in parse_challenges(response.headers.get_list("WWW-Authenticate"))
            }
            if "bearer" in challenges and self.credentials.registry_token:
                self._header = f"Bearer {self.credentials.registry_token}"
            elif "bearer" in challenges:
                self._header, seconds = self._fetch_token(challenges["bearer"], shown(str(response.url)))
                self._good_until = self._transport.timing.clock() + seconds - _MARGIN_SECONDS
            elif "basic" in challenges and self.credentials.username:
                self._header = self.credentials.basic
            return self._header is not None and self._header != sent

    def _fetch_token(self, challenge: dict[str, str], registry: str) -> tuple[str, float]:
        """The Authorization header with a token, and how long it is good for (seconds)."""
        realm = challenge.get("realm", "")
        if not realm.startswith(("https://", "http://")):
            raise RegistryError(f"{registry} asks for a token of {realm or 'nobody'}, which is no URL")
        self._transport.check_secure(realm, f"{registry} asks for a token of")
        fields = {"scope": challenge.get("scope") or self._scope}
        if challenge.get("service"):
            fields["service"] = challenge["service"]
        credentials = self.credentials
        if credentials.identity_token:
            fields |= {"grant_type": "refresh_token", "refresh_token": credentials.identity_token, "client_id": _CLIENT}
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            request = self._transport.request("POST", realm, kind, content=urlencode(fields).encode())
        else:
            basic = credentials.basic if credentials.username else None
            if basic:
                fields["account"] = credentials.username
            address = f"{realm}{'&' if '?' in realm else '?'}{urlencode(fields)}"
            request = self._transport.request("GET", address, authorization=basic)
        with request as response:
            check_transient(response, "no token")
            self._check_granted(response, realm)
            body = read_body(response, self._transport.timing, self._transport.stop)
        try:
            found = msgspec.json.decode(body, type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RegistryError(f"the token server {shown(realm)} answered no JSON of a token: {error}") from error
        token = found.token or found.access_token
        if not token or not token.isascii() or not token.isprintable():
            raise RegistryError(f"the token server {shown(realm)} answered without a token that can be sent")
        return f"Bearer {token}", max(found.expires_in or _TOKEN_SECONDS, _TOKEN_SECONDS)

    def _check_granted(self, response: httpx.Response, realm: str) -> None:
        status = response.status_code
        if status == 200:
            return
        said = complaint(response)
        server, answered = f"the token server {shown(realm)}", f"{describe(status)}{said}"
        # Some say 400 to a user or an identity token that they do not know.
        if status == 401 or (status == 400 and not self.credentials.are_none):
            raise AuthError(f"{server} refuses {used(self.credentials)} ({answered}). {HOW_TO_LOG_IN}")
        if status == 403:
            raise PermissionDeniedError(
                f"{server} gives {used(self.credentials)} no token ({answered}). {HOW_TO_LOG_IN}"
            )
        raise RegistryError(f"{server} answered {answered}")


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


HOW_TO_LOG_IN = (
    "Give others with Image.from_registry(..., secret=...), a Secret with REGISTRY_USERNAME and REGISTRY_PASSWORD, or "
    "with `docker login` or `podman login`"
)


def used(credentials: Credentials) -> str:
    """The credentials that were sent, for messages."""
    if not credentials.are_none:
        return f"the credentials sent ({credentials.origin})"
    return "anonymous users" + credentials.origin.removeprefix("no credentials").replace("; ", ", and ", 1)


def refused(status: int, what: str, said: str, credentials: Credentials) -> AuthError | PermissionDeniedError:
    """The error for a registry's 401 or 403."""
    kind = AuthError if status == 401 else PermissionDeniedError
    return kind(
        f"{what}: the registry refuses {used(credentials)} ({describe(status)}{said}). {HOW_TO_LOG_IN}. Registries "
        "refuse in the same way what does not exist: check the name, too"
    )
