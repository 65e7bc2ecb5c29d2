"""Servers that the tests talk to: Debian's docker-registry, one that answers as told, one that gives out tokens."""

import base64
import contextlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.builder.oci.images import MadeImage


@dataclass
class Asked:
    """A request that a server got; header names are lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What a server answers. `then` is what it does after `sent` bytes of the body: "cut" the connection, "hang", or
    "trickle" 20 bytes a second."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    then: str = ""
    sent: int = 0


Responder = Callable[[Asked], Answer]


class Server:
    """An HTTP server on loopback that answers as told; what nobody told it about is 404.

    Of several answers to a path each is given once and the last from then on. `asked` has all requests.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.asked: list[Asked] = []
        self._answers: dict[str, list[Answer | Responder]] = {}
        self._released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._respond(self)

            do_POST = do_PUT = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # connections that break are what this is about

        self._listener = Listener(("127.0.0.1", 0), Handler)
        self.port = self._listener.server_port
        self.host = f"127.0.0.1:{self.port}"
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._listener.socket = context.wrap_socket(self._listener.socket, server_side=True)
            self.scheme = "https"
        self.url = f"{self.scheme}://{self.host}"
        self._thread = threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def on(self, path: str, *answers: Answer | Responder) -> None:
        """How requests for `path`, which has no query, are answered."""
        self._answers[path] = list(answers)

    def on_image(self, image: MadeImage, repository: str, tag: str = "latest") -> None:
        """Have an image, as a registry has it; blobs can be asked for in part."""
        for document in image.documents:
            for name in (document.digest, tag) if document is image.documents[-1] else (document.digest,):
                self.on(
                    f"/v2/{repository}/manifests/{name}",
                    Answer(200, document.data, {"Content-Type": document.media_type}),
                )
        for digest, data in image.blobs.items():
            self.on(f"/v2/{repository}/blobs/{digest}", ranged(data))

    def paths(self) -> list[str]:
        """The paths asked for, in order; those that only find out what speaks here are left out."""
        return [asked.path for asked in self.asked if asked.path != "/v2/"]

    def close(self) -> None:
        self._released.set()
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    def _respond(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        asked = Asked(handler.command, parts.path, parse_qs(parts.query), headers, body)
        self.asked.append(asked)
        answers = self._answers.get(parts.path) or [Answer(404)]
        chosen = answers.pop(0) if len(answers) > 1 else answers[0]
        answer = chosen if isinstance(chosen, Answer) else chosen(asked)
        if answer.then == "hang" and answer.sent == 0 and not answer.body:
            self._released.wait()
        handler.send_response_only(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        if not answer.then:
            handler.wfile.write(answer.body)
            return
        handler.wfile.write(answer.body[: answer.sent])
        handler.wfile.flush()
        if answer.then == "hang":
            self._released.wait()
        while answer.then == "trickle" and not self._released.wait(0.05):
            handler.wfile.write(answer.body[answer.sent : answer.sent + 1])
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.connection.shutdown(socket.SHUT_RDWR)


def ranged(data: bytes) -> Responder:
    """Answers with `data`, or with the part that is asked for."""

    def respond(asked: Asked) -> Answer:
        wanted = asked.headers.get("range", "")
        if not wanted:
            return Answer(200, data)
        first = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if first >= len(data):
            return Answer(416)
        return Answer(206, data[first:], {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"})

    return respond


@contextmanager
def docker_registry(folder: Path, auth: dict[str, object] | None = None) -> Iterator[str]:
    """Debian's docker-registry with its files in `folder`: yields host:port once it answers."""
    for program in ("docker-registry", "skopeo"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    folder.mkdir(exist_ok=True)
    config: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": "127.0.0.1:0", "secret": "for tests"},
        "compatibility": {"schema1": {"enabled": True}},
    }
    if auth:
        config["auth"] = auth
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log, cwd=folder
        )
    try:
        deadline = time.monotonic() + 60
        while (listens := re.search(r"listening on (127\.0\.0\.1:\d+)", (folder / "log").read_text())) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"docker-registry does not listen: {(folder / 'log').read_text()}")
            time.sleep(0.02)
        yield listens[1]
    finally:
        process.terminate()
        process.wait()


def make_certificate(folder: Path) -> Path:
    """A key and a certificate for this machine's loopback, signed by itself, in one file."""
    folder.mkdir(exist_ok=True)
    made = folder / "server.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", made, "-out", folder / "certificate.pem"),
        ],
        check=True,
        capture_output=True,
    )
    with made.open("a") as file:
        file.write((folder / "certificate.pem").read_text())
    return made


class TokenServer:
    """What a registry with token authentication relies on: users with passwords, and who may pull what.

    Anonymous users may pull `public/...`, users with the right password all. Tokens are JSON Web Tokens signed with the
    key in `certificate`, which the registry trusts.
    """

    service, issuer = "registry of the tests", "token server of the tests"

    def __init__(self, certificate: Path, users: dict[str, str], identity_tokens: tuple[str, ...] = ()) -> None:
        self.server = Server()
        self.server.on("/token", self._respond)
        self._certificate = certificate
        self._users = users
        self._identity_tokens = identity_tokens

    @property
    def auth(self) -> dict[str, object]:
        """The part of the registry's configuration."""
        return {
            "token": {
                "realm": f"{self.server.url}/token",
                "service": self.service,
                "issuer": self.issuer,
                "rootcertbundle": str(self._certificate.parent / "certificate.pem"),
            }
        }

    def _respond(self, asked: Asked) -> Answer:
        user = ""
        if asked.method == "POST":
            fields = {name: values[0] for name, values in parse_qs(asked.body.decode()).items()}
            if fields.get("refresh_token") not in self._identity_tokens:
                return Answer(401, b'{"details": "no such identity token"}')
            user, scopes = "by token", [fields["scope"]]
        else:
            scopes = asked.query.get("scope", [])
            if "authorization" in asked.headers:
                user, _, password = base64.b64decode(asked.headers["authorization"][6:]).decode().partition(":")
                if self._users.get(user) != password:
                    return Answer(401, b'{"details": "incorrect username or password"}')
        access = [self._granted(scope, user) for scope in scopes]
        token = self._signed(user, [one for one in access if one])
        return Answer(200, json.dumps({"token": token, "expires_in": 300}).encode())

    def _granted(self, scope: str, user: str) -> dict[str, object] | None:
        kind, name, actions = scope.split(":")
        allowed = actions.split(",") if user else ["pull"] if name.startswith("public/") else []
        return {"type": kind, "name": name, "actions": [one for one in allowed if one in actions.split(",")]}

    def _signed(self, user: str, access: list[dict[str, object]]) -> str:
        pem = (self._certificate.parent / "certificate.pem").read_text()
        der = "".join(pem.split("-----")[2].split())
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [der]}
        claims = {
            "iss": self.issuer,
            "sub": user,
            "aud": self.service,
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now - 10,
        }
        text = f"{_part(header)}.{_part(claims | {'jti': str(now), 'access': access})}"
        signed = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self._certificate],
            input=text.encode(),
            capture_output=True,
            check=True,
        )
        return f"{text}.{_text64(signed.stdout)}"


def _part(value: object) -> str:
    return _text64(json.dumps(value).encode())


def _text64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
