"""A repository of a registry, over the distribution API (https://github.com/opencontainers/distribution-spec)."""

import hashlib
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from urllib.parse import urljoin

import httpx
import msgspec

from farcall.builder.oci import aws, credentials
from farcall.builder.oci.authentication import Authenticator, refused
from farcall.builder.oci.endpoint import DIRECTLY, Access, endpoint_of
from farcall.builder.oci.image import Document
from farcall.builder.oci.manifest import ACCEPTED, MAX_DOCUMENT_BYTES
from farcall.builder.oci.reference import Reference, parse
from farcall.builder.oci.transport import (
    NoTlsError,
    Transport,
    check_transient,
    complaint,
    describe,
    read_body,
    shown,
)
from farcall.content.attempts import PATIENT, Timing, TransientError
from farcall.errors import ConnectionError, CorruptedError, FarcallError, NotFoundError, RegistryError

_TAG_PAGES = 20  # of 1,000 tags each, that are looked at for near ones
_NEAR_TAGS = 5
_REACHABLE_SECONDS = 2.0


class Repository:
    """One repository of a registry, to read from. Threads may share it; close it after use.

    `secret` are the values of a Secret; None: the user's own logins. Setting `stop` ends waits between attempts, and
    transfers. Methods raise AuthError and PermissionDeniedError (which credentials were used, how to give others),
    NotFoundError, RegistryError (the registry's own failure), ConnectionError, TimeoutError, CorruptedError.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        access: Access = DIRECTLY,
        secret: Mapping[str, str] | None = None,
        timing: Timing = PATIENT,
        stop: threading.Event | None = None,
    ) -> None:
        self._reference = reference
        # What a secret has is for the registry that the image's name says, and for no mirror of it.
        self._endpoint = endpoint = endpoint_of(reference, access, with_mirror=not secret)
        self._transport = Transport(endpoint.host, access.insecure, timing, stop or threading.Event())
        self._scheme_lock = threading.Lock()
        self._scheme = "" if endpoint.may_be_http else "https"
        self._authenticator = Authenticator(self._transport, self._credentials(secret), endpoint.repository)

    def __enter__(self) -> "Repository":
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    @property
    def name(self) -> str:
        """The reference, and the mirror where it comes from one: for messages."""
        return f"{self._reference} (from {self._endpoint.host})" if self._endpoint.is_mirror else str(self._reference)

    @property
    def transport(self) -> Transport:
        return self._transport

    def document(self, version: str) -> Document:
        """The manifest or index that a tag or digest names. NotFoundError has the nearest tags."""
        attempts = self._transport.attempts()
        while True:
            try:
                with self._get(f"manifests/{version}", {"Accept": ", ".join(ACCEPTED)}, self.name) as response:
                    media_type = response.headers.get("Content-Type", "")
                    data = read_body(response, self._transport.timing, self._transport.stop)
                if media_type.startswith("text/html"):
                    raise RegistryError(
                        f"{self._endpoint.host} answers with a web page: it is no registry, or something between wants "
                        "you to log in. Check the name"
                    )
                return Document(data, media_type, self._verified(data, version, response))
            except TransientError as failure:
                attempts.failed(failure)
            except NotFoundError as error:
                raise NotFoundError(f"{error}. {self._near(version)}") from None

    def small_blob(self, digest: str, size: int) -> bytes:
        """A blob that is held in memory, verified: an image's configuration."""
        if size > MAX_DOCUMENT_BYTES:
            raise RegistryError(f"{self.name}: its configuration has {size:,} bytes, more than {MAX_DOCUMENT_BYTES:,}")
        attempts = self._transport.attempts()
        while True:
            try:
                with self.blob(digest) as response:
                    data = read_body(response, self._transport.timing, self._transport.stop)
                self._verified(data, digest, response)
                return data
            except TransientError as failure:
                attempts.failed(failure)

    @contextmanager
    def blob(self, digest: str, offset: int = 0) -> Generator[httpx.Response]:
        """A blob's bytes, unverified, to be read in the `with` block. With an `offset` the registry may send the rest
        (206), all of it (200), or say that there is no such place (416). Raises `TransientError` for what may pass.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._get(f"blobs/{digest}", headers, f"{self.name}, {digest}") as response:
            yield response

    def tags(self) -> list[str]:
        """The repository's tags, the first 20,000 of them."""
        url, found = f"{self._base()}/tags/list?n=1000", list[str]()
        for _ in range(_TAG_PAGES):
            with self._get_url(url, {}, self.name) as response:
                body = read_body(response, self._transport.timing, self._transport.stop)
                further = response.links.get("next", {}).get("url")
            try:
                found += msgspec.json.decode(body, type=_Tags).tags or ()
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise RegistryError(f"{self._endpoint.host} answered no JSON of tags: {error}") from error
            if not further:
                break
            url = urljoin(url, further)
        return found

    def answers(self) -> bool:
        """Whether there is a registry, one that may want to know who asks."""
        with self._transport.request("GET", f"{self._origin()}/v2/") as response:
            return response.status_code in (200, 401)

    def _credentials(self, secret: Mapping[str, str] | None) -> Callable[[], credentials.Credentials]:
        """What finds out who we are. What can be said of a secret without asking anybody is said at once."""
        host = self._endpoint.host if self._endpoint.is_mirror else self._reference.registry
        if not secret:
            return lambda: credentials.of_user(host, self._endpoint.repository)
        if aws.are_keys(secret) and "REGISTRY_USERNAME" not in secret:
            return lambda: aws.log_in(secret, host, self._transport)
        found = credentials.from_secret(secret, host)
        return lambda: found

    def _origin(self) -> str:
        """Scheme and host. A registry that may do without TLS is first asked whether it has it."""
        with self._scheme_lock:
            attempts = self._transport.attempts()
            while not self._scheme:
                try:
                    with self._transport.request("GET", f"https://{self._endpoint.host}/v2/"):
                        self._scheme = "https"
                except NoTlsError:
                    self._scheme = "http"
                except TransientError as failure:
                    attempts.failed(failure)
            return f"{self._scheme}://{self._endpoint.host}"

    def _base(self) -> str:
        return f"{self._origin()}/v2/{self._endpoint.repository}"

    @contextmanager
    def _get(self, path: str, headers: Mapping[str, str], what: str) -> Generator[httpx.Response]:
        with self._get_url(f"{self._base()}/{path}", headers, what) as response:
            yield response

    @contextmanager
    def _get_url(self, url: str, headers: Mapping[str, str], what: str) -> Generator[httpx.Response]:
        """A good answer (or 416). Asked who we are, it is asked once more with the answer."""
        for is_last in (False, True):
            sent = self._authenticator.header()
            try:
                with self._transport.request("GET", url, headers, authorization=sent) as response:
                    # Who the registry sends us to may not ask who we are: it would get a token that is the registry's.
                    asks = response.status_code == 401 and self._is_own(response)
                    if asks and not is_last and self._authenticator.answer(response, sent):
                        continue
                    self._check(response, what)
                    yield response
                    return
            except NoTlsError as error:
                raise ConnectionError(
                    f"{error}. A registry without TLS must be named in the setting insecure_registries: "
                    f"{self._endpoint.host}"
                ) from error

    def _check(self, response: httpx.Response, what: str) -> None:
        status = response.status_code
        if status in (200, 206, 416):
            return
        check_transient(response, what)
        said = complaint(response)
        if not self._is_own(response):
            # An address that was good for a while, and is no more: the next attempt gets a new one.
            raise TransientError(
                RegistryError,
                f"{what}: {shown(str(response.url))}, where the registry keeps it, answered {describe(status)}{said}",
            )
        if status in (401, 403):
            raise refused(status, what, said, self._authenticator.credentials)
        if status == 404:
            raise NotFoundError(f"{what} is not in the registry (404{said})")
        raise RegistryError(f"{what}: the registry answered {describe(status)}{said}")

    def _is_own(self, response: httpx.Response) -> bool:
        return response.url.netloc.decode() == httpx.URL(f"{self._scheme}://{self._endpoint.host}").netloc.decode()

    def _verified(self, data: bytes, version: str, response: httpx.Response) -> str:
        """The digest of `data`. Raises `TransientError` where it is not the one asked for or promised."""
        promised = version if ":" in version else response.headers.get("Docker-Content-Digest", "")
        algorithm = "sha512" if promised.startswith("sha512:") else "sha256"
        digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
        if promised and promised != digest:
            raise TransientError(
                CorruptedError,
                f"{self.name}: {self._endpoint.host} sent {len(data):,} bytes that are {digest}, not {promised}",
                "The image is damaged in the registry, or something between changes what it sends: push it again",
                cost=2,
            )
        return digest

    def _near(self, version: str) -> str:
        """What there is instead of a tag, as far as the registry tells."""
        if ":" in version:
            return "It has no image of that digest: name a tag, or another digest"
        try:
            tags = self.tags()
        except (FarcallError, TransientError):
            return "Check the name: there may be no such repository"
        if not tags:
            return "The repository has no tags at all"
        near = get_close_matches(version, tags, _NEAR_TAGS, cutoff=0.5) or sorted(tags)[-_NEAR_TAGS:]
        return f"The nearest of its {len(tags):,} tags: {', '.join(near)}"


class _Tags(msgspec.Struct):
    tags: tuple[str, ...] | None = None


def reachable(reference: str, access: Access = DIRECTLY, seconds: float = _REACHABLE_SECONDS) -> bool:
    """Whether the registry of the image `reference` answers now. Takes little more than `seconds`.

    Raises InvalidError for what is no name of an image, and nothing else.
    """
    wanted = parse(reference)
    answers: list[bool] = []

    def ask() -> None:
        timing = Timing(connect=seconds, read=seconds, attempts=1)
        try:
            with Repository(wanted, access=access, timing=timing) as repository:
                answers.append(repository.answers())
        except (FarcallError, TransientError, NoTlsError):
            pass

    # In a thread, because looking up a name has no time limit of its own.
    thread = threading.Thread(target=ask, name="farcall-registry", daemon=True)
    thread.start()
    thread.join(2 * seconds)
    return answers == [True]
