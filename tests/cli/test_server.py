"""`farcall server start | stop` on this machine."""

import json
import os
from pathlib import Path

import pytest

from farcall import settings
from farcall.errors import InvalidError
from tests.conftest import Installation


def said(completed: object) -> str:
    """What a command printed for people, in one line."""
    return " ".join(completed.stderr.split())  # type: ignore[attr-defined]


def test_what_a_running_server_cannot_be_given_is_refused(installation: Installation) -> None:
    """With what to do instead; what it has already is none of that."""
    farcall = installation.farcall
    farcall("server", "start", "--worker-lease", "20s")
    refused = farcall("server", "start", "--listen", "127.0.0.1:0", "--worker-lease", "20s", check=False)
    assert refused.returncode not in (0, 2)
    assert "runs already (pid " in said(refused) and "without --listen," in said(refused)
    assert "farcall server stop" in said(refused)
    assert "`farcall server start --listen=127.0.0.1:0 --worker-lease=20s`" in said(refused)
    farcall("server", "stop")
    farcall("server", "start", "--listen", "127.0.0.1:0", "--no-own-worker")
    assert "runs already" in said(farcall("server", "start", "--listen", "127.0.0.1:0", "--no-own-worker"))
    assert "runs already" in said(farcall("server", "start"))
    refused = farcall("server", "start", "--listen", "127.0.0.1:7", "--own-worker", check=False)
    assert refused.returncode not in (0, 2)
    assert "with --listen=127.0.0.1:0 and with --no-own-worker" in said(refused)
    assert json.loads(farcall("server", "status", "--json").stdout)["state"] == "running"


def test_workers_that_cannot_come_back_are_named(installation: Installation) -> None:
    from farcall.cluster.registry import REGISTRY, KnownWorker, Registry

    farcall = installation.farcall
    assert "cannot come back" not in said(farcall("server", "start", "--listen", "127.0.0.1:0"))
    farcall("server", "stop")
    Registry(installation.root / "state" / "cluster" / REGISTRY).add(KnownWorker("wk-1", "box", 0.0))
    told = said(farcall("server", "start"))
    assert "cannot come back: box." in told and "--listen HOST:PORT" in told
    assert "cannot come back: box." in said(farcall("server", "start"))
    assert "cannot come back: box." in " ".join(farcall("server", "status").stdout.split())
    farcall("server", "stop")
    assert "cannot come back" not in said(farcall("server", "start", "--listen", "127.0.0.1:0"))


@pytest.mark.parametrize("how", ["stop", "idle"])
def test_a_server_takes_its_directory_in_tmp_with_it(tmp_path: Path, shared: Path, how: str) -> None:
    """Where the path of its state directory is too long for sockets."""
    long = Installation.under(tmp_path / ("x" * 100), shared)
    directory = settings.paths(long.environment).server_socket.parent
    assert directory.parent == Path("/tmp")
    if how == "idle":
        long.environment["FARCALL_IDLE_SECONDS"] = "0"
    long.farcall("server", "start")
    if how == "stop":
        assert directory.exists()
        long.farcall("server", "stop")
    else:
        wait_for_the_end(long)
        del long.environment["FARCALL_IDLE_SECONDS"]
    assert not directory.exists()
    long.farcall("server", "start")
    long.farcall("server", "stop")
    assert not directory.exists()


def wait_for_the_end(installation: Installation) -> None:
    """Of a server, which holds a lock until then."""
    import fcntl

    with open(installation.root / "state" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


def test_a_directory_in_tmp_that_something_is_in_stays(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "FARCALL_STATE_DIR": str(tmp_path / ("x" * 100))}
    found = settings.paths(environment)
    other = found.runtime / "other"
    other.touch()
    found.leave_runtime()
    assert other.exists()
    other.unlink()
    found.leave_runtime()
    assert not other.parent.exists()
    # Whoever has made it meanwhile, for everybody, gets no socket of ours.
    other.parent.mkdir(mode=0o777)
    os.chmod(other.parent, 0o777)
    try:
        with pytest.raises(InvalidError, match="private"):
            found.server_socket  # noqa: B018
    finally:
        other.parent.rmdir()
