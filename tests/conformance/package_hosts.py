"""Hosts that images install from, for a machine that cannot reach the real ones: run *inside* a build's container.

As the shell of an image (`package_hosts.py COMMAND`) this serves on the container's loopback, over TLS, while the
command runs:

    git's smart protocol  the repositories in FOLDER/git, by git's own `http-backend`, for the user and token in
                          FOLDER/login, which come as basic authentication
    the simple index      of the wheels in FOLDER/wheels (PEP 503), at /simple/

FOLDER is where this file lies. `cert.pem`, `key.pem`: for the names that are served.
"""

import base64
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

FOLDER = Path(__file__).resolve().parent
PORT = 443


class Handler(BaseHTTPRequestHandler):
    """A request of git, pip or poetry."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        words = unquote(parts.path).strip("/").split("/")
        wheels = sorted(path.name for path in (FOLDER / "wheels").glob("*.whl"))
        if words[0] == "simple" and len(words) == 2:
            project = words[1].replace("-", "_")
            links = [f'<a href="/wheels/{name}">{name}</a>' for name in wheels if name.startswith(f"{project}-")]
            self._answer(200 if links else 404, "text/html", "\n".join(links).encode())
        elif words[0] == "wheels" and words[-1] in wheels:
            self._answer(200, "application/octet-stream", (FOLDER / "wheels" / words[-1]).read_bytes())
        else:
            self._git(unquote(parts.path), parts.query)

    do_POST = do_GET  # noqa: N815

    def _git(self, path: str, query: str) -> None:
        login = base64.b64encode((FOLDER / "login").read_bytes()).decode()
        if self.headers.get("Authorization") != f"Basic {login}":
            self._answer(401, "text/plain", b"", {"WWW-Authenticate": 'Basic realm="git"'})
            return
        variables = {
            "GIT_PROJECT_ROOT": str(FOLDER / "git"),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",  # its files may belong to another user than the one who runs the step
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        done = subprocess.run(["git", "http-backend"], input=body, env=variables, stdout=subprocess.PIPE, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
        status = int(fields.pop("Status", "200").split()[0])
        self._answer(status, fields.pop("Content-Type", "text/plain"), content, fields)

    def _answer(self, status: int, kind: str, body: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | (more or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


def main(command: str) -> int:
    server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(FOLDER / "cert.pem", FOLDER / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    status = subprocess.run(["/bin/sh", "-c", command], check=False).returncode
    server.shutdown()
    thread.join()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
