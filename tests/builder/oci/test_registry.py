"""The registry client, against servers that answer badly: each ends in the error that says so, or in the image."""

from pathlib import Path

import pytest

from farcall import errors
from farcall.builder.oci.endpoint import Access
from farcall.builder.oci.reference import Reference, parse
from farcall.builder.oci.registry import Repository, reachable
from farcall.content.attempts import Timing
from tests.builder.oci.conftest import Patience
from tests.builder.oci.images import digest_of, layer, make_image, member
from tests.builder.oci.servers import Answer, Responder, Server

MANIFEST = "/v2/name/manifests/latest"
IMAGE = make_image([layer(member("a", b"one"))])
GOOD = Answer(200, IMAGE.documents[-1].data, {"Content-Type": IMAGE.documents[-1].media_type})


def reference(server: Server, tag: str = "latest") -> Reference:
    return parse(f"{server.host}/name:{tag}")


def fetch(server: Server, timing: Timing, tag: str = "latest") -> bytes:
    with Repository(reference(server, tag), timing=timing) as repository:
        return repository.document(tag).data


def test_a_manifest_is_fetched_and_verified(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, GOOD)
    assert fetch(server, patience.timing) == GOOD.body
    assert "application/vnd.oci.image.index.v1+json" in server.asked[-1].headers["accept"]
    assert server.asked[-1].headers["user-agent"].startswith("farcall/")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(server: Server, patience: Patience, status: int) -> None:
    server.on(MANIFEST, Answer(status), Answer(status), GOOD)
    assert fetch(server, patience.timing) == GOOD.body
    assert patience.slept == [0.5, 1.0]


def test_a_registry_that_goes_on_failing_is_an_error(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, Answer(503, b'{"errors": [{"code": "UNAVAILABLE", "message": "disk is full\\n"}]}'))
    with pytest.raises(errors.RegistryError, match=r"503 Service Unavailable: disk is full \) \(5 attempts in \d+ s\)"):
        fetch(server, patience.timing)
    assert patience.slept == [0.5, 1.0, 2.0, 4.0]


def test_a_rate_limit_says_what_helps(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, Answer(429, b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}'))
    with pytest.raises(errors.RegistryError, match=r"limits how often it is asked \(429: slow down\).*credentials"):
        fetch(server, patience.timing)


@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "7"}, {"Date": "Tue, 01 Jul 2025 10:00:00 GMT", "Retry-After": "Tue, 01 Jul 2025 10:00:07 GMT"}],
)
def test_retry_after_is_honoured(server: Server, patience: Patience, headers: dict[str, str]) -> None:
    server.on(MANIFEST, Answer(429, headers=headers), GOOD)
    assert fetch(server, patience.timing) == GOOD.body
    assert patience.slept == [pytest.approx(7, abs=1)]


def test_a_retry_after_that_nobody_waits_for_is_an_error_at_once(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, Answer(429, headers={"Retry-After": "3600"}), GOOD)
    with pytest.raises(errors.RegistryError, match="left alone for 3600 s"):
        fetch(server, patience.timing)
    assert patience.slept == []


def test_a_hang_before_the_answer(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, Answer(then="hang"))
    with pytest.raises(errors.TimeoutError, match=r"sent nothing for 0\.5 s \(3 attempts"):
        fetch(server, patience.hasty)


def test_a_hang_in_the_middle_of_the_answer_and_then_none(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, Answer(200, GOOD.body, then="hang", sent=10), GOOD)
    assert fetch(server, patience.hasty) == GOOD.body


def test_a_connection_that_breaks(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, Answer(200, GOOD.body, then="cut", sent=10), GOOD)
    assert fetch(server, patience.timing) == GOOD.body
    server.on(MANIFEST, Answer(200, GOOD.body, then="cut", sent=10))
    with pytest.raises(errors.ConnectionError, match=r"the connection to .* broke.*5 attempts"):
        fetch(server, patience.timing)


def test_nobody_listens(server: Server, patience: Patience) -> None:
    server.close()
    with pytest.raises(errors.ConnectionError, match=rf"{server.host} cannot be reached.*refused"):
        fetch(server, patience.timing)


def test_a_host_that_does_not_exist(patience: Patience) -> None:
    with (
        Repository(parse("nowhere.invalid/name"), timing=patience.timing) as repository,
        pytest.raises(errors.ConnectionError, match=r"nowhere\.invalid cannot be reached"),
    ):
        repository.document("latest")


def test_a_manifest_that_is_not_what_its_digest_says(server: Server, patience: Patience) -> None:
    digest = digest_of(b"something else")
    server.on(f"/v2/name/manifests/{digest}", GOOD)
    with (
        Repository(reference(server), timing=patience.timing) as repository,
        pytest.raises(errors.CorruptedError, match=f"not {digest}"),
    ):
        repository.document(digest)


def test_a_manifest_that_is_not_what_its_own_header_says(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, Answer(200, GOOD.body, {"Docker-Content-Digest": digest_of(b"something else")}))
    with pytest.raises(errors.CorruptedError):
        fetch(server, patience.timing)


def test_a_tag_that_is_not_there_names_the_nearest(server: Server, patience: Patience) -> None:
    first = Answer(200, b'{"tags": ["3.10-slim", "3.11-slim", "latest"]}', {"Link": '</v2/more?n=1>; rel="next"'})
    server.on("/v2/name/tags/list", first)
    server.on("/v2/more", Answer(200, b'{"tags": ["3.12-slim-bookworm", "3.13-slim"]}'))
    with pytest.raises(errors.NotFoundError, match=r"nearest of its 5 tags: 3\.1[0-9]-slim") as raised:
        fetch(server, patience.timing, tag="3.14-slim")
    assert "name:3.14-slim is not in the registry (404)" in str(raised.value)


@pytest.mark.parametrize("tags", [Answer(404), Answer(200, b"nonsense"), Answer(401), Answer(503)])
def test_a_tag_that_is_not_there_where_tags_are_not_told(server: Server, patience: Patience, tags: Answer) -> None:
    server.on("/v2/name/tags/list", tags)
    with pytest.raises(errors.NotFoundError, match="there may be no such repository"):
        fetch(server, patience.timing, tag="3.14-slim")


def test_a_web_page_instead_of_a_registry(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, Answer(200, b"<html>log in!</html>", {"Content-Type": "text/html; charset=utf-8"}))
    with pytest.raises(errors.RegistryError, match="web page"):
        fetch(server, patience.timing)


def test_a_manifest_without_end_is_refused(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, Answer(200, b" " * (9 * 2**20)))
    with pytest.raises(errors.RegistryError, match="more than 8,388,608 bytes"):
        fetch(server, patience.timing)


def test_an_unknown_status_is_an_error_with_what_the_registry_says(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, Answer(418, b'{"errors": [{"code": "TEAPOT", "message": ""}]}'))
    with pytest.raises(errors.RegistryError, match=r"answered 418 .*: TEAPOT"):
        fetch(server, patience.timing)


# --- redirects


def test_a_redirect_is_followed_and_gets_no_credentials_of_the_registry(
    server: Server, other_server: Server, patience: Patience
) -> None:
    digest = digest_of(b"blob")
    server.on(f"/v2/name/blobs/{digest}", basic_then(Answer(307, headers={"Location": f"{other_server.url}/b?key=1"})))
    other_server.on("/b", Answer(200, b"blob"))
    secret = {"REGISTRY_USERNAME": "u", "REGISTRY_PASSWORD": "p"}
    with Repository(reference(server), timing=patience.timing, secret=secret) as repository:
        assert repository.small_blob(digest, 4) == b"blob"
    assert "authorization" in server.asked[-1].headers
    assert other_server.asked[-1].query == {"key": ["1"]}
    assert "authorization" not in other_server.asked[-1].headers


def test_where_a_redirect_leads_may_not_ask_for_credentials(
    server: Server, other_server: Server, patience: Patience
) -> None:
    digest = digest_of(b"blob")
    server.on(f"/v2/name/blobs/{digest}", Answer(307, headers={"Location": f"{other_server.url}/b?key=1"}))
    other_server.on("/b", Answer(401, headers={"WWW-Authenticate": f'Bearer realm="{other_server.url}/token"'}))
    secret = {"REGISTRY_USERNAME": "u", "REGISTRY_PASSWORD": "p"}
    with (
        Repository(reference(server), timing=patience.timing, secret=secret) as repository,
        pytest.raises(errors.RegistryError, match=r"/b, where the registry keeps it, answered 401") as raised,
    ):
        repository.small_blob(digest, 4)
    assert "/token" not in other_server.paths()
    assert all("authorization" not in asked.headers for asked in other_server.asked)
    assert "key=1" not in str(raised.value)


def test_a_redirect_in_a_circle(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, Answer(302, headers={"Location": MANIFEST}))
    with pytest.raises(errors.RegistryError, match="more than 5 redirects"):
        fetch(server, patience.timing)


@pytest.mark.parametrize("target", ["http://192.0.2.1/x", "file:///etc/passwd", "gopher://x/"])
def test_a_redirect_to_what_is_not_encrypted(server: Server, patience: Patience, target: str) -> None:
    server.on(MANIFEST, Answer(302, headers={"Location": target}))
    with pytest.raises(errors.RegistryError, match=r"leads to .*, which is not encrypted"):
        fetch(server, patience.timing)


def basic_then(answer: Answer) -> Responder:
    challenge = Answer(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
    return lambda asked: answer if "authorization" in asked.headers else challenge


# --- TLS


def test_a_certificate_that_is_not_trusted(certificate: Path, patience: Patience) -> None:
    server = Server(certificate)
    try:
        server.on(MANIFEST, GOOD)
        with pytest.raises(errors.ConnectionError, match=r"certificate of .* is not trusted.*SSL_CERT_FILE"):
            fetch(server, patience.timing)
        assert server.asked == []
    finally:
        server.close()


def test_a_certificate_that_is_trusted(certificate: Path, patience: Patience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.parent / "certificate.pem"))
    server = Server(certificate)
    try:
        server.on(MANIFEST, GOOD)
        assert fetch(server, patience.timing) == GOOD.body
    finally:
        server.close()


def test_http_is_for_this_machine_and_for_what_the_setting_names(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, GOOD)
    host = f"0.0.0.0:{server.port}"  # leads to this machine, too, which its look does not say
    with (
        Repository(parse(f"{host}/name"), timing=patience.timing) as repository,
        pytest.raises(errors.ConnectionError, match=f"{host} does not speak TLS.*insecure_registries"),
    ):
        repository.document("latest")
    for named in (host, "0.0.0.0"):
        with Repository(parse(f"{host}/name"), timing=patience.timing, access=Access(insecure=(named,))) as repository:
            assert repository.document("latest").data == GOOD.body


# --- docker.io and its mirrors


def test_a_mirror_stands_in_for_docker_io(server: Server, patience: Patience) -> None:
    server.on("/v2/hub/library/python/manifests/3.12", GOOD)
    access = Access(docker_io=f"{server.host}/hub")
    with Repository(parse("python:3.12"), timing=patience.timing, access=access) as repository:
        assert repository.document("3.12").data == GOOD.body
        with pytest.raises(errors.NotFoundError, match=f"docker.io/library/python:3.12 .from {server.host}."):
            repository.document("3.13")


@pytest.mark.parametrize("setting", ["https://mirror.example", "", "/"])
def test_a_mirror_that_is_none(setting: str) -> None:
    with pytest.raises(errors.InvalidError, match="the setting registry"):
        Repository(parse("python"), access=Access(docker_io=setting))


def test_what_is_reachable(server: Server) -> None:
    assert not reachable(f"{server.host}/name")
    server.on("/v2/", Answer(401))
    assert reachable(f"{server.host}/name", seconds=30.0)
    server.on("/v2/", Answer(then="hang"))
    assert not reachable(f"{server.host}/name", seconds=0.2)
    assert not reachable("nowhere.invalid/name", seconds=0.2)
