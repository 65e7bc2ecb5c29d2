"""HTTP to a registry and to where it leads: redirects, time limits, and what may be tried again.

`httpx` is imported here and nowhere else, so that only jobs that talk to registries load it.
"""

import ssl
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urljoin

import httpx
import msgspec

from farcall.builder.oci.endpoint import is_loopback, may_be_http
from farcall.builder.oci.manifest import MAX_DOCUMENT_BYTES
from farcall.content.attempts import Attempts, StoppedError, Timing, TransientError
from farcall.errors import ConnectionError, RegistryError, TimeoutError
from farcall.version import __version__

_MAX_ERROR_BYTES = 64 * 1024
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_CERTIFICATES = ("/etc/containers/certs.d", "/etc/docker/certs.d")


class Transport:
    """HTTP for one registry. Threads may share it.

    `insecure` are hosts that may be asked over http, besides this machine's own. Setting `stop` ends waits between
    attempts. Close it after use.
    """

    def __init__(self, host: str, insecure: tuple[str, ...], timing: Timing, stop: threading.Event) -> None:
        self.timing = timing
        self.stop = stop
        self._insecure = insecure
        self._client = httpx.Client(
            timeout=httpx.Timeout(timing.read, connect=timing.connect),
            headers={"User-Agent": f"farcall/{__version__}", "Accept-Encoding": "identity"},
            verify=_trusted(host),
            trust_env=not is_loopback(host),  # no proxy leads to this machine itself
        )

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def attempts(self) -> Attempts:
        """The patience for one thing to ask for."""
        return Attempts(self.timing, self.stop)

    @contextmanager
    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        authorization: str | None = None,
        content: bytes | None = None,
    ) -> Generator[httpx.Response]:
        """One answer, of whatever status, its body still to be read; redirects of GET are followed.

        `authorization` goes to the host of `url` only, and never on to another scheme, host or port. Raises
        `TransientError` for what may pass, also while the body is read in the `with` block; RegistryError for a
        redirect that leads nowhere, ConnectionError for a certificate that is not trusted.
        """
        with self._failures(url):
            response = self._follow(method, url, dict(headers or {}), authorization, content)
            try:
                yield response
            finally:
                response.close()

    def _follow(
        self, method: str, url: str, headers: dict[str, str], authorization: str | None, content: bytes | None
    ) -> httpx.Response:
        first = origin = _origin(url)
        for _ in range(_MAX_REDIRECTS + 1):
            own = {"Authorization": authorization} if authorization and origin == first else {}
            request = self._client.build_request(method, url, headers=headers | own, content=content)
            response = self._client.send(request, stream=True)
            if response.status_code not in _REDIRECTS or method != "GET" or "Location" not in response.headers:
                return response
            response.close()
            url = urljoin(url, response.headers["Location"])
            origin = _origin(url)
            self.check_secure(url, f"{shown(str(request.url))} leads to")
        raise RegistryError(f"{shown(url)} leads on and on: more than {_MAX_REDIRECTS} redirects in a row")

    def check_secure(self, url: str, what: str) -> None:
        """Raises RegistryError where `url` is not https and its host may not be asked over http."""
        scheme, host, _ = _origin(url)
        if scheme == "https" or (scheme == "http" and may_be_http(httpx.URL(url).netloc.decode(), self._insecure)):
            return
        raise RegistryError(
            f"{what} {shown(url)}, which is not encrypted. If that is meant to be so, name {host} in the setting "
            "insecure_registries"
        )

    @contextmanager
    def _failures(self, url: str) -> Generator[None]:
        """Turns what httpx raises into ours."""
        where = httpx.URL(url).netloc.decode() or url
        check = "Check the network, the name and the proxy settings (HTTPS_PROXY, NO_PROXY), and try again"
        try:
            yield
        except httpx.ConnectTimeout as error:
            what = f"{where} did not accept a connection within {self.timing.connect:g} s"
            raise TransientError(TimeoutError, what, check, cost=2) from error
        except httpx.TimeoutException as error:
            what = f"{where} sent nothing for {self.timing.read:g} s"
            raise TransientError(TimeoutError, what, cost=2) from error
        except httpx.ConnectError as error:
            failed = _tls_failure(error)
            if failed is not None and isinstance(failed, ssl.SSLCertVerificationError):
                raise ConnectionError(
                    f"the certificate of {where} is not trusted: {failed.verify_message}. Put the certificate of its "
                    f"authority into {_CERTIFICATES[0]}/{where}/ca.crt, or name it in SSL_CERT_FILE"
                ) from error
            if failed is not None:
                raise NoTlsError(f"{where} does not speak TLS: {failed.reason or failed}") from error
            raise TransientError(ConnectionError, f"{where} cannot be reached: {error}", check, cost=2) from error
        except httpx.ProxyError as error:
            raise TransientError(ConnectionError, f"the proxy to {where} failed: {error}", check, cost=2) from error
        except httpx.TransportError as error:
            raise TransientError(ConnectionError, f"the connection to {where} broke: {error}") from error
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            raise RegistryError(f"{where} cannot be asked: {error}") from error


class NoTlsError(Exception):
    """A host answered a TLS handshake with something else: plain http, as a rule."""


def chunks(response: httpx.Response, timing: Timing, stop: threading.Event) -> Iterator[bytes]:
    """The body as it arrives, in pieces of at most 64 KiB.

    Raises `TransientError` where it comes so slowly that it would take for ever, `StoppedError` when asked to.
    """
    since, received = timing.clock(), 0
    for chunk in response.iter_raw():  # with a size it would wait until so much is there
        if stop.is_set():
            raise StoppedError
        received += len(chunk)
        now = timing.clock()
        if now - since >= timing.read:
            if received < timing.slowest * (now - since):
                where = shown(str(response.url))
                what = f"{where} sends less than {timing.slowest:g} bytes a second"
                raise TransientError(TimeoutError, what, cost=2)
            since, received = now, 0
        yield chunk


def read_body(
    response: httpx.Response, timing: Timing, stop: threading.Event, limit: int = MAX_DOCUMENT_BYTES
) -> bytes:
    """The whole body. Raises RegistryError where it is longer than `limit` bytes."""
    body = bytearray()
    for chunk in chunks(response, timing, stop):
        body += chunk
        if len(body) > limit:
            raise RegistryError(f"{shown(str(response.url))} answers with more than {limit:,} bytes, which is refused")
    return bytes(body)


def check_transient(response: httpx.Response, what: str) -> None:
    """Raises `TransientError` for a status that says "not now"; `what` says what was wanted."""
    status = response.status_code
    if status not in _TRANSIENT:
        return
    where = shown(str(response.url))
    said = complaint(response)
    if status == 429:
        advice = "Wait, or give credentials: registries allow more to users they know"
        reason = f"{where} limits how often it is asked (429{said})"
    else:
        advice = "Try again later; if it goes on, ask whoever runs that registry"
        reason = f"{where} failed ({describe(status)}{said})"
    raise TransientError(RegistryError, f"{what}: {reason}", advice, retry_after=_retry_after(response))


def complaint(response: httpx.Response) -> str:
    """What an answer says of its error in the distribution API's JSON, as ": text"; "" where it says nothing."""
    body = b""
    try:
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > _MAX_ERROR_BYTES:
                return ""
        found = msgspec.json.decode(body, type=_Errors)
    except (httpx.TransportError, msgspec.DecodeError, UnicodeDecodeError):
        return ""
    texts = [error.message or error.code for error in found.errors] or [found.details or found.message]
    text = "; ".join(text for text in texts if text)
    text = "".join(character if character.isprintable() else " " for character in text)
    return f": {text[:300]}" if text else ""


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: tuple[_Error, ...] = ()
    details: str = ""  # of token servers
    message: str = ""


def describe(status: int) -> str:
    """A status in words: "502 Bad Gateway"."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def shown(url: str) -> str:
    """A URL for messages: without the query and the user, which may be keys to what it names."""
    parsed = httpx.URL(url)
    return f"{parsed.scheme}://{parsed.netloc.decode()}{parsed.path}"


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host, parsed.port


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, from a header that has them or a date; a date is measured by the clock of who sent it."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        sent = parsedate_to_datetime(response.headers.get("Date", ""))
        return max(0.0, (parsedate_to_datetime(value) - sent).total_seconds())
    except (TypeError, ValueError):
        return None


def _tls_failure(error: BaseException) -> ssl.SSLError | None:
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__ or found.__context__
    return found


def _trusted(host: str) -> ssl.SSLContext:
    """The authorities that this machine trusts, and those that it trusts for this registry."""
    context = ssl.create_default_context()
    defaults = ssl.get_default_verify_paths()
    if not (defaults.cafile or defaults.capath):  # a Python that does not know where this system has them
        import certifi

        context.load_verify_locations(certifi.where())
    for folder in _CERTIFICATES:
        for certificate in sorted(Path(folder, host).glob("*.crt")):
            try:
                context.load_verify_locations(certificate)
            except (OSError, ssl.SSLError) as error:
                raise ConnectionError(f"{certificate} is no certificate: {error}") from error
    return context
