"""Who may join, and what those are told who may not."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from farcall import settings
from farcall.cluster.tokens import Token
from tests.conftest import Installation, leftovers, short_directory, snapshot


@pytest.fixture(scope="module")
def listening(shared: Path) -> Iterator[Installation]:
    """A server that listens for workers, here."""
    with short_directory() as root:
        before = snapshot(root)
        made = Installation.under(root, shared)
        made.farcall("server", "start", "--listen", "127.0.0.1:0", "--no-own-worker")
        yield made
        made.farcall("server", "stop", "--force")
        assert not leftovers(root, before)


@pytest.fixture
def other(shared: Path) -> Iterator[Installation]:
    """Another machine, that is no worker yet."""
    with short_directory() as root:
        yield Installation.under(root, shared)


def refused(other: Installation, token: str, *arguments: str) -> str:
    ended = other.farcall("worker", "join", *arguments, FARCALL_WORKER_TOKEN=token, check=False)
    assert ended.returncode not in (0, 2) and "Traceback" not in ended.stderr, ended.stderr
    return " ".join(ended.stderr.split())


def new_token(listening: Installation, *arguments: str) -> str:
    return listening.farcall("worker", "token", "create", *arguments).stdout.strip()


def test_a_machine_without_a_token(other: Installation) -> None:
    assert "give it a token" in refused(other, "")


def test_what_is_no_token(other: Installation) -> None:
    assert "that is no token of a farcall server" in refused(other, "s3cret")


def test_a_token_that_was_revoked(listening: Installation, other: Installation) -> None:
    token = new_token(listening, "--label", "gone")
    token_id = Token.decode(token).token_id
    listening.farcall("worker", "token", "revoke", token_id)
    assert f"the token {token_id} was revoked" in refused(other, token)
    listed = json.loads(listening.farcall("worker", "token", "list", "--json").stdout)
    assert [(one["state"], one["joined"]) for one in listed if one["label"] == "gone"] == [("revoked", 0)]
    assert Token.decode(token).secret not in listening.farcall("worker", "token", "list").stdout


def test_a_token_that_has_expired(listening: Installation, other: Installation) -> None:
    assert "has expired" in refused(other, new_token(listening, "--expires", "0.001s"))


def test_a_token_with_another_secret(listening: Installation, other: Installation) -> None:
    token = Token.decode(new_token(listening))
    forged = Token(token.token_id, "0" * 48, token.address, token.fingerprint)
    assert "this server has not issued the token" in refused(other, forged.encode())


def test_a_server_that_is_another_than_the_token_says(listening: Installation, other: Installation) -> None:
    token = Token.decode(new_token(listening))
    elsewhere = Token(token.token_id, token.secret, token.address, "0" * 64)
    assert "is not the server that issued the token" in refused(other, elsewhere.encode())
    assert not (other.root / "state" / "worker" / "worker.json").exists()


def test_nobody_listens_there(listening: Installation, other: Installation) -> None:
    token = Token.decode(new_token(listening))
    nowhere = Token(token.token_id, token.secret, "127.0.0.1:1", token.fingerprint)
    assert "127.0.0.1:1 cannot be reached" in refused(other, nowhere.encode())


@contextmanager
def working(worker: Installation, *arguments: str, token: str = "") -> Generator[subprocess.Popen[str]]:
    """A worker that is ready."""
    command = [sys.executable, "-m", "farcall", "worker", "join", *arguments]
    environment = worker.environment | {"FARCALL_WORKER_TOKEN": token}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = list(takewhile(lambda line: not line.endswith("ready\n"), process.stderr))
            assert process.poll() is None, said
            yield process
        finally:
            process.terminate()


def workers(listening: Installation) -> list[dict[str, Any]]:
    return json.loads(listening.farcall("worker", "list", "--json").stdout)


def test_a_worker_that_was_removed_joins_anew(listening: Installation, other: Installation) -> None:
    before = snapshot(other.root)
    with working(other, "--name", "again", token=new_token(listening)) as process:
        (first,) = workers(listening)
        listening.farcall("worker", "remove", "again")
        assert process.wait(60) == 3  # it does not come back by itself
    assert workers(listening) == []
    assert "this server does not know the worker (any more)" in refused(other, "")
    with working(other, token=new_token(listening)):
        (second,) = workers(listening)
    assert second["worker_id"] != first["worker_id"]
    assert second["name"] == "again"
    # What did not work is not remembered, and a token changes no name.
    assert "cannot name a worker" in refused(other, "", "--name", "a b")
    with working(other, token=new_token(listening)):
        assert [one["name"] for one in workers(listening)] == ["again"]
    listening.farcall("worker", "remove", "again")
    assert not leftovers(other.root, before)


def test_a_worker_whose_state_is_far_down(listening: Installation, other: Installation) -> None:
    """At a path that is too long for a socket."""
    other.environment["FARCALL_STATE_DIR"] += "/deep" * 25
    try:
        with working(other, "--name", "deep", token=new_token(listening)) as process:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
    finally:
        shutil.rmtree(settings.paths(other.environment).runtime)
    listening.farcall("worker", "remove", "deep")


def test_a_token_file_that_is_empty(other: Installation) -> None:
    file = other.root / "token"
    file.touch()
    assert f"there is no token in {file}, which is empty" in refused(other, "", "--token-file", str(file))


def test_a_call_says_that_it_waits_for_a_worker(listening: Installation) -> None:
    program = listening.root / "waits.py"
    program.write_text("import farcall\napp = farcall.App()\n@app.function()\ndef f(): pass\n")
    command = [sys.executable, "-m", "farcall", "run", str(program)]
    with subprocess.Popen(command, env=listening.environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = any("f: waiting for a worker to join" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert said


def test_a_name_that_is_none(listening: Installation, other: Installation) -> None:
    assert "cannot name a worker" in refused(other, new_token(listening), "--name", "a b")


@pytest.mark.parametrize(
    "arguments",
    [("--region", "eu\x1b]0;mine\x07"), ("--label", "disk=\x1b[2J"), ("--label", "x" * 300 + "=1")],
    ids=["region", "label", "too long"],
)
def test_what_would_speak_to_terminals_is_no_region_or_label(
    listening: Installation, other: Installation, arguments: tuple[str, ...]
) -> None:
    said = refused(other, new_token(listening), *arguments)
    assert "cannot be a worker's" in said and "visible characters" in said and "\x1b" not in said
    assert workers(listening) == [], "and it has not joined"


def test_the_keys_are_the_user_s_only(listening: Installation) -> None:
    keys = listening.root / "state" / "cluster"
    assert {path.name for path in keys.glob("*.key")} == {"ca.key", "server.key"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (keys, *keys.iterdir()))


def test_a_server_that_does_not_listen(installation: Installation) -> None:
    installation.farcall("server", "start")
    ended = installation.farcall("worker", "token", "create", check=False)
    assert ended.returncode != 0 and "--listen HOST:PORT" in ended.stderr
    listed = json.loads(installation.farcall("worker", "list", "--json").stdout)
    assert [one["state"] for one in listed] == ["local"]


@pytest.mark.long
def test_a_server_that_listens_for_workers_does_not_end_when_it_is_idle(shared: Path) -> None:
    with short_directory() as root:
        server = Installation.under(root, shared)
        server.environment["FARCALL_IDLE_SECONDS"] = "0.5"
        try:
            server.farcall("server", "start", "--listen", "127.0.0.1:0")
            pid = json.loads(server.farcall("server", "status", "--json").stdout)["pid"]
            time.sleep(4)  # it looks once a second
            assert json.loads(server.farcall("server", "status", "--json").stdout)["pid"] == pid
        finally:
            server.farcall("server", "stop", "--force")
