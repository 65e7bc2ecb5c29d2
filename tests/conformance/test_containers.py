"""Semantics: containers."""

import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import containers_app
import pytest
from containers_app import app

import farcall
from farcall import errors
from farcall.sdk import client as clients

if TYPE_CHECKING:
    from tests.conftest import Installation


def run(installation: "Installation", program: Path, *arguments: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(program), *map(str, arguments)],
        env=installation.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )


def live_containers(name: str) -> int:
    """How many containers the newest app of that name has."""
    return [report.containers for report in clients.current().status().apps if report.name == name][-1]


# --- hooks


def test_order_of_import_enter_and_inputs() -> None:
    """Order: import, enter(snap=True), enter(), inputs; sync and async hooks, each once per container."""
    hooks = containers_app.Hooks()
    entered = ["import", "enter snap", "enter", "async enter"]
    assert hooks.sync_method.remote() == [*entered, "input"]
    assert hooks.async_method.remote() == [*entered, "input", "async input"]
    assert hooks.sync_method.remote() == [*entered, "input", "async input", "input"]


def test_hooks_of_base_classes_run_first() -> None:
    """Hooks and methods are inherited; those of a base class run first."""
    assert containers_app.Derived().report.remote() == ["base", "derived"]


HOOKS = """
import asyncio, os, signal, sys, time
import farcall

app = farcall.App("hooks")


@app.cls(max_containers=1)
class Hooked:
    @farcall.enter()
    def begin(self):
        print("enter", flush=True)

    @farcall.method()
    def work(self):
        print("work", flush=True)

    @farcall.method()
    def signal(self, number):
        os.kill(os.getpid(), number)
        time.sleep(20)

    @farcall.method()
    def fail(self):
        raise ValueError("failed")

    @farcall.exit()
    def end(self):
        time.sleep(0.3)
        print("exit", flush=True)

    @farcall.exit()
    async def end_later(self):
        await asyncio.sleep(0.3)
        print("async exit", flush=True)


if __name__ == "__main__":
    what = sys.argv[1]
    with farcall.enable_output(), app.run():
        Hooked().work.remote()
        if what == "end":
            pass
        elif what == "failure":
            try:
                Hooked().fail.remote()
            except ValueError:
                pass
        else:
            try:
                Hooked().signal.remote(getattr(signal, what))
            except farcall.errors.ContainerCrashedError as error:
                print("crashed by", what if what in str(error) else error, flush=True)
            print("goes on", flush=True)
            Hooked().work.remote()
"""


@pytest.mark.parametrize("what", ["end", "failure"])
def test_exit_hooks_at_the_end_of_the_app(connected: "Installation", program: Callable[[str], Path], what: str) -> None:
    """Exit hooks run once when the app ends, sync and async, also after an input that failed."""
    done = run(connected, program(HOOKS), what)
    assert done.stdout.splitlines() == ["enter", "work", "exit", "async exit"], done.stderr


@pytest.mark.parametrize("what", ["SIGTERM", "SIGINT"])
def test_exit_hooks_on_signals(connected: "Installation", program: Callable[[str], Path], what: str) -> None:
    """Exit hooks run once on SIGINT and SIGTERM; the input that ran fails, naming the signal, and the next one gets a
    new container."""
    done = run(connected, program(HOOKS), what)
    lines = done.stdout.splitlines()
    assert f"crashed by {what}" in lines, done.stdout + done.stderr
    ours = [line for line in lines if line not in (f"crashed by {what}", "goes on")]
    assert ours == ["enter", "work", "exit", "async exit"] * 2, done.stderr


def test_exit_hooks_on_scaling_down(connected: "Installation", program: Callable[[str], Path]) -> None:
    """Exit hooks run once on scale-down, after scaledown_window seconds without inputs."""
    path = program("""
        import farcall, time
        from farcall.sdk import client

        app = farcall.App("down")

        @app.cls(scaledown_window=2)
        class Down:
            @farcall.method()
            def work(self):
                print("work", flush=True)
                return time.monotonic()

            @farcall.exit()
            def end(self):
                print("exit", flush=True)

        def containers():
            return [app.containers for app in client.current().status().apps if app.name == "down"][0]

        if __name__ == "__main__":
            with farcall.enable_output(), app.run():
                ended = Down().work.remote()
                while containers():
                    time.sleep(0.05)
                print("down after the window:", 1.9 < time.monotonic() - ended < 40, flush=True)
                Down().work.remote()
    """)
    lines = run(connected, path).stdout.splitlines()
    assert "down after the window: True" in lines
    assert [line for line in lines if not line.startswith("down")] == ["work", "exit", "work", "exit"]


# --- pools


def test_one_input_at_a_time(eventually: Callable[..., None]) -> None:
    """Without @concurrent, one input at a time: two of half a second take a second in one container."""
    identity = containers_app.one_container.remote(0)
    began = time.monotonic()
    assert set(containers_app.one_container.map([0.5, 0.5])) == {identity}
    assert time.monotonic() - began > 0.99  # the server counts milliseconds


def test_max_containers() -> None:
    """max_containers is never exceeded."""
    assert 1 < len(set(containers_app.three_containers.map([0.4] * 12))) <= 3


def test_min_containers(eventually: Callable[..., None]) -> None:
    """min_containers are there while the app runs, before any call."""
    other = farcall.App("kept-warm")
    other.function(serialized=True, name="warm", min_containers=2)(lambda: 1)
    with other.run():
        eventually(lambda: live_containers("kept-warm") == 2)


def test_single_use_containers() -> None:
    """single_use_containers: each input has a container of its own."""
    calls = [containers_app.single_use.spawn() for _ in range(4)]
    assert len(set(farcall.FunctionCall.gather(*calls))) == 4


def test_containers_scale_to_the_load_and_end_with_the_app() -> None:
    """A pool starts empty, grows with the load, and nothing is left when the app has ended."""
    other = farcall.App("scaled")
    napper = other.function(serialized=True, name="nap", max_containers=3)(time.sleep)
    with other.run():
        assert live_containers("scaled") == 0
        napper.remote(0)
        assert live_containers("scaled") == 1
        list(napper.map([0.2] * 9))
        assert 2 <= live_containers("scaled") <= 3
    assert not [report for report in clients.current().status().apps if report.name == "scaled"]


# --- resources


@pytest.mark.parametrize(
    ("function", "limit"), [(containers_app.allocate, 128), (containers_app.allocate_to_limit, 256)]
)
def test_memory_limit(function: Any, limit: int, out_of_memory: type[Exception]) -> None:
    """`memory` is a request or (request, limit); the kernel enforces the limit: OutOfMemoryError with limit, peak."""
    assert function.remote(limit // 4) == limit // 4 * 2**20
    with pytest.raises(out_of_memory) as caught:
        function.remote(4 * limit)
    if out_of_memory is errors.OutOfMemoryError:
        said = re.search(rf"{function.name}.*limit of {limit} MiB \(peak (\d+) MiB\)", str(caught.value))
        assert said is not None, caught.value
        assert limit * 0.9 <= int(said[1]) <= limit
    assert function.remote(1) == 2**20  # the next one has a container again


def test_requests_that_can_never_be_held() -> None:
    """A request that no worker could ever satisfy fails at once and says what is available."""
    with pytest.raises(errors.ResourceExhaustedError, match=r"too_many_cores asks for 100000 cores.* has \d+"):
        containers_app.too_many_cores.remote()
    with pytest.raises(errors.ResourceExhaustedError, match=r"too_much_memory asks for 100000000 MiB.* has \d+ MiB"):
        containers_app.too_much_memory.remote()


@pytest.mark.parametrize(
    ("function", "feature"),
    [
        (containers_app.from_snapshot, "enable_memory_snapshot"),
        (containers_app.allocate.with_options(volumes={"/data": farcall.CloudBucketMount("b")}), "CloudBucketMount"),
    ],
)
def test_features_that_are_not_there_yet(function: Any, feature: str) -> None:
    """What is declared with a feature that is not built yet registers; calling it is an error that names it."""
    with pytest.raises(errors.UnimplementedError, match=rf"{function.name}.*{feature}"):
        function.remote()


def test_environment() -> None:
    """env and secrets are environment variables; env, which comes last, wins."""
    assert containers_app.environment.remote("FROM_ENV") == "env"
    assert containers_app.environment.remote("FROM_SECRET") == "secret"


# --- processes


def test_user_code_is_not_pid_1() -> None:
    """Pid 1 is farcall's init: the function's process is its child."""
    pid, parent, _ = containers_app.arguments_of_process.remote()
    assert pid > 1
    assert parent == 1


def test_children_work() -> None:
    """Forks, multiprocessing and subprocesses of user code work."""
    assert containers_app.child_of_multiprocessing.remote(20) == [x * x for x in range(20)]
    assert containers_app.subprocess_output.remote() == "from a child\n"


# --- classes


def test_class_parameters() -> None:
    """parameter() of str, int, bytes, bool; keyword-only; defaults applied; wrong ones are errors that say which."""
    assert containers_app.Model(name="a").describe.remote() == ("a", 1, b"k", False)
    made = containers_app.Model(name="b", size=2, key=b"x", fast=True)
    assert made.describe.remote() == ("b", 2, b"x", True)
    for wrong, match in [
        ({}, "name"),
        ({"name": 1}, "name"),
        ({"name": "a", "size": "1"}, "size"),
        ({"name": "a", "unknown": 1}, "unknown"),
    ]:
        with pytest.raises(errors.InvalidError, match=match):
            containers_app.Model(**wrong)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidError, match="keyword"):
        containers_app.Model("a")  # type: ignore[misc]


def test_equal_parameters_share_containers() -> None:
    """Defaults are applied before the key is made: equal sets share containers, others do not."""
    identity = containers_app.Model(name="same").identity.remote()
    assert containers_app.Model(size=1, name="same", fast=False).identity.remote() == identity
    assert containers_app.Model(name="other").identity.remote() != identity


def test_parameters_and_init_exclude_each_other() -> None:
    """`__init__` together with parameter() is an error; alone it takes its arguments."""

    class Both:
        name: str = farcall.parameter()

        def __init__(self) -> None: ...

    with pytest.raises(errors.InvalidError, match="__init__"):
        farcall.App("both").cls(serialized=True)(Both)
    assert containers_app.Positional(1).get.remote() == (1, "b")
    assert containers_app.Positional(2, b="c").get.remote() == (2, "c")


def test_enter_hooks_run_before_local_methods() -> None:
    """`@enter` hooks run before .local() too, on async methods as on others."""
    import asyncio

    assert containers_app.Hooks().sync_method.local()[-2:] == ["async enter", "input"]
    assert asyncio.run(containers_app.AsyncOnly().get.local()) == 42
    assert containers_app.AsyncOnly().get.remote() == 42


def test_an_app_has_what_was_declared() -> None:
    """The app's functions and classes are there by name."""
    assert "allocate" in app.registered_functions
    assert set(app.registered_classes) >= {"Hooks", "Model"}


def test_output_of_containers(connected: "Installation", program: Callable[[str], Path]) -> None:
    """What containers write to stdout and stderr, from Python, below it and from children, is shown as it was."""
    path = program(
        textwrap.dedent("""
        import farcall, os, subprocess, sys

        app = farcall.App("talker")

        @app.function()
        def talk():
            print("python out")
            print("python err", file=sys.stderr)
            os.write(1, b"raw out\\n")
            subprocess.run(["sh", "-c", "echo child out; echo child err >&2"], check=True)

        if __name__ == "__main__":
            with farcall.enable_output(), app.run():
                talk.remote()
    """)
    )
    done = run(connected, path)
    assert sorted(done.stdout.splitlines()) == ["child out", "python out", "raw out"]
    assert [line for line in sorted(done.stderr.splitlines()) if "err" in line] == ["child err", "python err"]
