"""Apps under test in containers: the same faults, on a server of the test's own whose clock is moved."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import farcall
from farcall import errors, testing
from farcall.sdk import client
from farcall.testing import Run, Server, containers
from farcall.testing import server as servers

app = farcall.App("contained")


@app.function(
    retries=farcall.Retries(max_retries=2, initial_delay=50, backoff_coefficient=1), timeout=100, max_containers=1
)
def fetch(url: str) -> str:
    return f"page of {url}"


@app.cls(scaledown_window=3000, max_containers=1)
class Counter:
    @farcall.enter()
    def begin(self) -> None:
        self.count = 0

    @farcall.method()
    def add(self) -> int:
        self.count += 1
        return self.count


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def run(server: Server) -> Iterator[Run]:
    with testing.run(app, server=server) as run:
        yield run


def test_retries_wait_on_the_server_s_clock(run: Run) -> None:
    run.fail(fetch, OSError("no route"), times=2)
    before = run.clock.now()
    assert fetch.remote("a") == "page of a"
    assert 100 <= run.clock.now() - before < 140
    run.fail(fetch, OSError("no route"), times=3)
    with pytest.raises(OSError, match="no route") as caught:
        fetch.remote("a")
    assert caught.value.__notes__ == ["after 3 attempts"]


def test_a_lost_container_is_replaced_at_once(run: Run) -> None:
    assert [Counter().add.remote(), Counter().add.remote()] == [1, 2]
    run.lose(Counter().add, after=True)
    assert Counter().add.remote() == 1
    assert run.starts(Counter) == 2
    run.lose(fetch, times=9)
    with pytest.raises(errors.ContainerCrashedError, match="fetch was lost 9 times in a row"):
        fetch.remote("a")


def test_a_crash_takes_the_container_along(run: Run) -> None:
    assert Counter().add.remote() == 1
    run.fail(Counter().add, errors.OutOfMemoryError("too much"))
    with pytest.raises(errors.OutOfMemoryError, match="too much"):
        Counter().add.remote()
    assert Counter().add.remote() == 1


def test_attempts_that_take_too_long(run: Run) -> None:
    before = run.clock.now()
    run.slow(fetch, 90)
    assert fetch.remote("a") == "page of a"
    assert 90 <= run.clock.now() - before < 110
    run.slow(fetch, 101, times=3)
    with pytest.raises(errors.FunctionTimeoutError, match="fetch ran longer than its timeout of 100 s"):
        fetch.remote("a")


def test_containers_stay_for_their_window(run: Run) -> None:
    Counter().add.remote()
    run.clock.advance(2900)
    assert Counter().add.remote() == 2
    run.clock.advance(3000)
    assert Counter().add.remote() == 1
    run.end_containers(Counter)
    assert Counter().add.remote() == 1


def test_what_is_in_the_tests_process_only(run: Run) -> None:
    for ask in (lambda: run.calls(), lambda: run.replace(fetch, print), lambda: run.slow_starts(fetch, 1)):
        with pytest.raises(errors.UnimplementedError, match="leave out server="):
            ask()
    with pytest.raises(errors.InvalidError, match="times=0"):
        run.fail(fetch, OSError, times=0)
    with pytest.raises(errors.InvalidError, match="forward only"):
        run.clock.advance(-1)


def test_faults_that_nothing_meets_fail_the_test(server: Server) -> None:
    said = r"met no attempt \(function: how many\): Counter.add: 1"
    with pytest.raises(AssertionError, match=said), testing.run(app, server=server) as run:
        run.fail("Counter.add", OSError)


def test_one_app_at_a_time(run: Run, server: Server) -> None:
    with pytest.raises(errors.ConflictError, match="this process runs an app"):  # noqa: SIM117
        with testing.run(farcall.App("another"), server=server):
            pass


def test_other_servers_let_no_test_in(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as plain:
        monkeypatch.setattr(servers, "ENVIRONMENT", {})
        with plain.serving(), pytest.raises(errors.PermissionDeniedError, match="not one for tests"):
            containers.ServerClock()
    client.disconnect()


TEST = """
import farcall

app = farcall.App("plugged")

@app.function(serialized=True)
def pid():
    import os
    return os.getpid()

def test_where(farcall_run):
    run = farcall_run(app)
    run.lose(pid)
    print("\\npid", pid.remote())
"""


@pytest.mark.parametrize("option", [[], ["--farcall-containers"]])
def test_the_plugin(tmp_path: Path, option: list[str]) -> None:
    (tmp_path / "test_plugged.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *option, str(tmp_path)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert (f"pid {process.pid}\n" in output) == (not option)
