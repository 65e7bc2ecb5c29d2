"""Who we are: challenges as registries word them, users and passwords, tokens, and whose they are."""

import base64
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from farcall import errors
from farcall.builder.oci import aws
from farcall.builder.oci.authentication import Challenge, parse_challenges
from farcall.builder.oci.credentials import Credentials, from_secret, of_user
from farcall.builder.oci.reference import parse
from farcall.builder.oci.registry import Repository
from tests.builder.oci.conftest import Patience
from tests.builder.oci.images import layer, make_image, member, write_layout
from tests.builder.oci.servers import Answer, Asked, Responder, Server, TokenServer, docker_registry

IMAGE = make_image([layer(member("a", b"one"))])
SECRET = {"REGISTRY_USERNAME": "anna", "REGISTRY_PASSWORD": "s:cret"}


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("headers", "challenges"),
    [
        (['Basic realm="a b"'], [Challenge("basic", {"realm": "a b"})]),
        (
            ['Bearer realm="https://auth.example/token",service="s",scope="repository:a/b:pull,push"'],
            [
                Challenge(
                    "bearer",
                    {"realm": "https://auth.example/token", "service": "s", "scope": "repository:a/b:pull,push"},
                )
            ],
        ),
        (
            ['bearer Realm = "https://a" , SERVICE=s , error="invalid_token", Basic realm="x\\"y"'],
            [
                Challenge("bearer", {"realm": "https://a", "service": "s", "error": "invalid_token"}),
                Challenge("basic", {"realm": 'x"y'}),
            ],
        ),
        (["Negotiate", 'Basic realm="r"'], [Challenge("negotiate", {}), Challenge("basic", {"realm": "r"})]),
        (["Negotiate abc==, Basic realm=r"], [Challenge("negotiate", {}), Challenge("basic", {"realm": "r"})]),
        (['Negotiate,Basic realm="r"'], [Challenge("negotiate", {}), Challenge("basic", {"realm": "r"})]),
        ([""], []),
        (['= , ="""\\'], []),
        (['Bearer realm="unclosed'], [Challenge("bearer", {})]),
    ],
)
def test_challenges(headers: list[str], challenges: list[Challenge]) -> None:
    assert parse_challenges(headers) == challenges


# --- against a real registry with a token server, and one with passwords


@pytest.fixture(scope="module")
def token_server(certificate: Path) -> Iterator[TokenServer]:
    made = TokenServer(certificate, {"anna": "s:cret"}, ("identity-1",))
    yield made
    made.server.close()


@pytest.fixture(scope="module")
def token_registry(token_server: TokenServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that wants tokens; has public/name and private/name."""
    folder = tmp_path_factory.mktemp("token-registry")
    write_layout(IMAGE, folder / "layout")
    with docker_registry(folder / "registry", token_server.auth) as host:
        for name in ("public", "private"):
            push(folder / "layout", f"{host}/{name}/name", "anna:s:cret")
        yield host


@pytest.fixture(scope="module")
def password_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that wants a user and a password; has name."""
    folder = tmp_path_factory.mktemp("password-registry")
    write_layout(IMAGE, folder / "layout")
    passwords = folder / "htpasswd"
    subprocess.run(["htpasswd", "-Bbc", passwords, "anna", "s:cret"], check=True, capture_output=True)
    with docker_registry(folder / "registry", {"htpasswd": {"realm": "tests", "path": str(passwords)}}) as host:
        push(folder / "layout", f"{host}/name", "anna:s:cret")
        yield host


def push(layout: Path, name: str, credentials: str) -> None:
    copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"--dest-creds={credentials}"]
    subprocess.run([*copy, f"oci:{layout}:latest", f"docker://{name}:latest"], check=True, capture_output=True)


def digest(name: str, patience: Patience, secret: dict[str, str] | None = None) -> str:
    """Fetches manifest and configuration."""
    with Repository(parse(name), timing=patience.timing, secret=secret) as repository:
        document = repository.document("latest")
        config = json.loads(document.data)["config"]
        repository.small_blob(config["digest"], config["size"])
        return document.digest


def log_in(home: Path, host: str, *, file: str = ".docker/config.json", **fields: object) -> None:
    path = home / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": {host: fields}}))


def test_public_images_need_no_credentials(token_registry: str, patience: Patience) -> None:
    assert digest(f"{token_registry}/public/name", patience) == IMAGE.digest


def test_a_token_serves_for_several_requests(
    token_registry: str, token_server: TokenServer, patience: Patience
) -> None:
    before = len(token_server.server.asked)
    digest(f"{token_registry}/public/name", patience)
    assert len(token_server.server.asked) == before + 1


def test_private_images_by_a_secret(token_registry: str, patience: Patience) -> None:
    assert digest(f"{token_registry}/private/name", patience, SECRET) == IMAGE.digest


def test_private_images_by_a_login(token_registry: str, patience: Patience, home: Path) -> None:
    log_in(home, token_registry, auth=encoded("anna:s:cret"))
    assert digest(f"{token_registry}/private/name", patience) == IMAGE.digest


def test_private_images_by_an_identity_token(
    token_registry: str, token_server: TokenServer, patience: Patience, home: Path
) -> None:
    log_in(home, token_registry, auth=encoded("<token>:"), identitytoken="identity-1")
    assert digest(f"{token_registry}/private/name", patience) == IMAGE.digest
    assert token_server.server.asked[-1].method == "POST"


def test_an_identity_token_that_is_not_known(token_registry: str, patience: Patience, home: Path) -> None:
    log_in(home, token_registry, identitytoken="another")
    with pytest.raises(errors.AuthError, match=r"a token in .*config\.json.*no such identity token"):
        digest(f"{token_registry}/private/name", patience)


def test_private_images_without_credentials(token_registry: str, patience: Patience) -> None:
    with pytest.raises(
        errors.AuthError, match=r"anonymous users \(401.*REGISTRY_USERNAME.*docker login.*check the name"
    ):
        digest(f"{token_registry}/private/name", patience)


def test_a_wrong_password(token_registry: str, patience: Patience) -> None:
    wrong = SECRET | {"REGISTRY_PASSWORD": "hunter2"}
    with pytest.raises(
        errors.AuthError, match=r"refuses the credentials sent \(the secret's REGISTRY_USERNAME\).*incorrect username"
    ) as raised:
        digest(f"{token_registry}/private/name", patience, wrong)
    assert "hunter2" not in str(raised.value)


def test_a_user_and_a_password(password_registry: str, patience: Patience, home: Path) -> None:
    assert digest(f"{password_registry}/name", patience, SECRET) == IMAGE.digest
    with pytest.raises(errors.AuthError, match="anonymous users"):
        digest(f"{password_registry}/name", patience)
    log_in(home, password_registry, file=".config/containers/auth.json", auth=encoded("anna:s:cret"))
    assert digest(f"{password_registry}/name", patience) == IMAGE.digest
    log_in(home, password_registry, file=".config/containers/auth.json", auth=encoded("anna:wrong"))
    with pytest.raises(errors.AuthError, match=r"those of anna in .*containers/auth\.json"):
        digest(f"{password_registry}/name", patience)


# --- against servers that answer badly


def with_token(token: str, answer: Answer, challenge: str) -> Responder:
    def respond(asked: Asked) -> Answer:
        if asked.headers.get("authorization") == f"Bearer {token}":
            return answer
        return Answer(401, headers={"WWW-Authenticate": challenge})

    return respond


MANIFEST = "/v2/name/manifests/latest"
GOOD = Answer(200, IMAGE.documents[-1].data, {"Content-Type": IMAGE.documents[-1].media_type})


def fetch(server: Server, patience: Patience, secret: dict[str, str] | None = None) -> str:
    with Repository(parse(f"{server.host}/name"), timing=patience.timing, secret=secret) as repository:
        return repository.document("latest").digest


def test_a_token_that_runs_out_is_renewed(server: Server, patience: Patience) -> None:
    challenge = f'Bearer realm="{server.url}/token",service="s"'
    server.on("/token", Answer(200, b'{"access_token": "one"}'), Answer(200, b'{"token": "two", "expires_in": 300}'))
    with Repository(parse(f"{server.host}/name"), timing=patience.timing) as repository:
        server.on(MANIFEST, with_token("one", GOOD, challenge))
        assert repository.document("latest").digest == IMAGE.digest
        server.on(MANIFEST, with_token("two", GOOD, challenge))
        assert repository.document("latest").digest == IMAGE.digest
    assert [asked.query["scope"] for asked in server.asked if asked.path == "/token"] == [["repository:name:pull"]] * 2


def test_a_token_that_is_refused_ends_it(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, with_token("right", GOOD, f'Bearer realm="{server.url}/token"'))
    server.on("/token", Answer(200, b'{"token": "wrong"}'))
    with pytest.raises(errors.AuthError, match="anonymous users"):
        fetch(server, patience)
    assert len(server.paths()) == 3


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (Answer(200, b"nonsense"), errors.RegistryError, "no JSON of a token"),
        (Answer(200, b"{}"), errors.RegistryError, "without a token"),
        (Answer(200, b'{"token": "a\\r\\nb: c"}'), errors.RegistryError, "without a token that can be sent"),
        (Answer(404), errors.RegistryError, "answered 404"),
        (Answer(403, b'{"errors": [{"code": "DENIED"}]}'), errors.PermissionDeniedError, "no token .403.*DENIED"),
        (Answer(503), errors.RegistryError, "503.*5 attempts"),
    ],
)
def test_a_token_server_that_fails(
    server: Server, patience: Patience, answer: Answer, error: type[Exception], said: str
) -> None:
    server.on(MANIFEST, with_token("right", GOOD, f'Bearer realm="{server.url}/token"'))
    server.on("/token", answer)
    with pytest.raises(error, match=said):
        fetch(server, patience)


def test_a_token_server_that_hangs(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, with_token("right", GOOD, f'Bearer realm="{server.url}/token"'))
    server.on("/token", Answer(then="hang"))
    with (
        Repository(parse(f"{server.host}/name"), timing=patience.hasty) as repository,
        pytest.raises(errors.TimeoutError, match="sent nothing"),
    ):
        repository.document("latest")


@pytest.mark.parametrize("realm", ["http://192.0.2.1/token", "ftp://x/token", "", "token"])
def test_a_token_server_that_may_not_be_told_a_password(server: Server, patience: Patience, realm: str) -> None:
    server.on(MANIFEST, Answer(401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'}))
    with pytest.raises(errors.RegistryError, match=r"not encrypted|no URL"):
        fetch(server, patience, SECRET)


def test_forbidden_is_said_with_the_credentials_used(server: Server, patience: Patience) -> None:
    server.on(MANIFEST, Answer(403, b'{"errors": [{"message": "not yours"}]}'))
    with pytest.raises(errors.PermissionDeniedError, match=r"REGISTRY_USERNAME.*403 Forbidden: not yours"):
        fetch(server, patience, SECRET)


def test_a_secret_is_not_sent_to_a_mirror_of_docker_io(server: Server) -> None:
    from farcall.builder.oci.endpoint import Access, endpoint_of

    access = Access(docker_io=server.host)
    assert endpoint_of(parse("python"), access).host == server.host
    with Repository(parse("python"), access=access, secret=SECRET) as repository:
        assert "from" not in repository.name


# --- where credentials come from


def test_secrets() -> None:
    found = from_secret({**SECRET, "SERVICE_ACCOUNT_JSON": "{}"}, "r")
    assert (found.username, found.password) == ("anna", "s:cret")
    found = from_secret({"SERVICE_ACCOUNT_JSON": '{"a": 1}'}, "europe-docker.pkg.dev")
    assert (found.username, found.password) == ("_json_key", '{"a": 1}')
    assert "a" not in repr(found).replace("Credentials", "").replace("the secret's", "")
    with pytest.raises(errors.InvalidError, match="secret for r has PASSWORD, USER") as raised:
        from_secret({"USER": "anna", "PASSWORD": "s:cret"}, "r")
    assert "anna" not in str(raised.value)


def test_the_most_specific_login_counts(home: Path) -> None:
    (home / ".docker").mkdir()
    auths = {
        "quay.io": {"auth": encoded("host:1")},
        "quay.io/owner": {"auth": encoded("owner:2")},
        "https://index.docker.io/v1/": {"auth": encoded("hub:3")},
        "http://plain.example/v2/": {"username": "plain", "password": "4"},
        "empty.example": {},
    }
    (home / ".docker" / "config.json").write_text(json.dumps({"auths": auths}))
    assert of_user("quay.io", "owner/name").username == "owner"
    assert of_user("quay.io", "other/name").username == "host"
    assert of_user("docker.io", "library/python").username == "hub"
    assert of_user("plain.example", "name").password == "4"
    assert of_user("empty.example", "name").are_none
    assert of_user("ghcr.io", "owner/name") == Credentials("no credentials")


def test_files_of_podman_come_before_docker_s(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_in(home, "r.example", auth=encoded("docker:1"))
    assert of_user("r.example", "name").username == "docker"
    log_in(home, "r.example", file=".config/containers/auth.json", auth=encoded("podman:1"))
    assert of_user("r.example", "name").username == "podman"
    log_in(home, "r.example", file="run/containers/auth.json", auth=encoded("session:1"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    assert of_user("r.example", "name").username == "session"
    log_in(home, "r.example", file="own.json", auth=encoded("own:1"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "own.json"))
    assert of_user("r.example", "name").username == "own"
    log_in(home, "r.example", file="config/config.json", auth=encoded("moved:1"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    (home / ".config/containers/auth.json").unlink()
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "config"))
    assert of_user("r.example", "name").username == "moved"


@pytest.mark.parametrize("text", ["{", '{"auths": 3}', '{"auths": {"r.example": {"auth": "%%%"}}}', "\xff"])
def test_a_file_that_cannot_be_read_is_named_when_the_registry_refuses(
    text: str, server: Server, home: Path, patience: Patience
) -> None:
    (home / ".docker").mkdir()
    (home / ".docker" / "config.json").write_text(text.replace("r.example", server.host), "latin-1")
    server.on(MANIFEST, Answer(401, headers={"WWW-Authenticate": "Basic realm=r"}))
    with pytest.raises(errors.AuthError, match=r"anonymous users, and .*/\.docker/config\.json"):
        fetch(server, patience)
    server.on(MANIFEST, GOOD)
    assert fetch(server, patience) == IMAGE.digest


@pytest.fixture
def helper(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential helper's program, to be written by the test; docker's configuration names it for r.example."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (home / ".docker").mkdir()
    (home / ".docker" / "config.json").write_text('{"credHelpers": {"r.example": "tests"}, "credsStore": "tests"}')
    return tmp_path / "bin" / "docker-credential-tests"


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_credential_helper_is_run(helper: Path) -> None:
    write_program(helper, """[ "$1" = get ] && echo "{\\"Username\\": \\"anna\\", \\"Secret\\": \\"for $(cat)\\"}" """)
    assert of_user("r.example", "name")[1:3] == ("anna", "for r.example")
    assert of_user("docker.io", "name").password == "for https://index.docker.io/v1/"
    write_program(helper, 'echo \'{"Username": "<token>", "Secret": "t"}\'')
    assert of_user("r.example", "name").identity_token == "t"


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("echo credentials not found in native keychain; exit 1", ""),
        ("echo the keychain is locked >&2; exit 3", "status 3: the keychain is locked"),
        ("echo hello", "no JSON"),
        (None, "not installed"),
    ],
)
def test_a_credential_helper_that_fails(helper: Path, program: str | None, problem: str) -> None:
    if program is not None:
        write_program(helper, program)
    found = of_user("r.example", "name")
    assert found.are_none
    assert problem in found.origin and ("docker-credential-tests" in found.origin) == bool(problem)


# --- Amazon

KEYS = aws.Keys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
THEN = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)


@pytest.mark.parametrize(
    ("method", "url", "headers", "service", "signature"),
    [
        # get-vanilla, post-vanilla and get-vanilla-query-order-key-case of the test suite of Signature Version 4
        (
            "GET",
            "https://example.amazonaws.com/",
            {},
            "service",
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        (
            "POST",
            "https://example.amazonaws.com/",
            {},
            "service",
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ),
        (
            "GET",
            "https://example.amazonaws.com/?Param2=value2&Param1=value1",
            {},
            "service",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        # the example of the IAM user guide
        (
            "GET",
            "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08",
            {"content-type": "application/x-www-form-urlencoded; charset=utf-8"},
            "iam",
            "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
        ),
    ],
)
def test_requests_are_signed_as_amazon_does(
    method: str, url: str, headers: dict[str, str], service: str, signature: str
) -> None:
    signed = aws.sign(method, url, headers, b"", KEYS, "us-east-1", service, THEN)
    names = "content-type;host;x-amz-date" if headers else "host;x-amz-date"
    assert signed["authorization"] == (
        f"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/{service}/aws4_request, "
        f"SignedHeaders={names}, Signature={signature}"
    )


def test_an_aws_key_is_exchanged_for_a_password(server: Server, other_server: Server, patience: Patience) -> None:
    secret = {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_SESSION_TOKEN": "session",
        "AWS_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL_ECR": f"{other_server.url}/",
    }
    answer = {
        "authorizationData": [{"authorizationToken": encoded("AWS:password"), "proxyEndpoint": "x", "expiresAt": 1.5}]
    }
    other_server.on("/", Answer(200, json.dumps(answer).encode()))
    allowed = f"Basic {encoded('AWS:password')}"
    server.on(
        MANIFEST,
        lambda asked: (
            GOOD
            if asked.headers.get("authorization") == allowed
            else Answer(401, headers={"WWW-Authenticate": 'Basic realm="ecr"'})
        ),
    )
    assert fetch(server, patience, secret) == IMAGE.digest
    asked = other_server.asked[-1]
    assert asked.headers["x-amz-target"] == "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"
    assert asked.headers["x-amz-security-token"] == "session"
    assert "/eu-west-1/ecr/aws4_request, SignedHeaders=content-type;host;" in asked.headers["authorization"]

    refused = b'{"__type": "UnrecognizedClientException", "message": "The security token is invalid."}'
    other_server.on("/", Answer(400, refused))
    with pytest.raises(errors.AuthError, match=r"eu-west-1 refuses the AWS key AKIDEXAMPLE \(400.*token is invalid"):
        fetch(server, patience, secret)
    other_server.on("/", Answer(200, b'{"authorizationData": []}'))
    with pytest.raises(errors.RegistryError, match="without a token"):
        fetch(server, patience, secret)
    other_server.on("/", Answer(500))
    with pytest.raises(errors.RegistryError, match=r"500.*5 attempts"):
        fetch(server, patience, secret)
    del secret["AWS_REGION"]
    with pytest.raises(errors.InvalidError, match="no AWS_REGION"):
        fetch(server, patience, secret)
