"""Semantics: what containers are given room for, who makes room, and what those are told who wait."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from placement_app import ALL, HALF, app, inner, large, meet, outer, where

import farcall
from farcall import errors

if TYPE_CHECKING:
    from tests.conftest import Installation

Eventually = Callable[..., None]

THERE = "(this machine|the largest worker)"


@pytest.fixture(autouse=True)
def empty(eventually: Eventually) -> Iterator[None]:
    """No container of these functions is there when the next test begins."""
    yield
    functions = large, where, outer, inner
    eventually(lambda: not any(one.get_current_stats().num_total_runners for one in functions))


def test_app_has_the_functions() -> None:
    assert set(app.registered_functions) == {"where", "large", "meet", "outer", "inner"}


# --- what can never be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpu": 1000.0}, rf"where asks for 1000 cores and {THERE} has {ALL:g}: lower cpu="),
        (
            {"memory": 2**30},
            rf"where asks for 1073741824 MiB of memory and {THERE} has \d+ MiB for containers: lower memory=",
        ),
        ({"gpu": "H100:2"}, r"where asks for gpu=H100:2 and (this machine has .*|no worker has a GPU): change gpu="),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_what_no_worker_could_ever_hold_fails_at_once(options: Any, message: str) -> None:
    """A request that no worker could ever satisfy fails at once and says what is available."""
    began = time.monotonic()
    with pytest.raises(errors.ResourceExhaustedError, match=message):
        where.with_options(**options).remote()
    assert time.monotonic() - began < 20


def test_a_disk_that_is_not_there_fails_at_once(program: Callable[[str], Path], connected: "Installation") -> None:
    path = program("""
        import farcall

        app = farcall.App("disk")

        @app.function(ephemeral_disk=2**30)
        def f(): ...
    """)
    done = connected.farcall("run", path, check=False)
    assert done.returncode == 3
    assert re.search(
        rf"f asks for 1073741824 MiB of disk and {THERE} has \d+ MiB free: lower ephemeral_disk=", done.stderr
    ), done.stderr


def test_a_floor_that_could_never_be_fails_at_the_start_of_the_app() -> None:
    own = farcall.App("floor")

    @own.function(serialized=True, memory=2**30, min_containers=1)
    def f() -> None: ...

    with pytest.raises(errors.ResourceExhaustedError, match="f asks for 1073741824 MiB"), own.run():
        pass


# --- who has room, and who makes it


def test_idle_containers_are_ended_for_those_who_need_the_room() -> None:
    """Idle containers above the floor are evicted, least recently used first, as soon as another placement needs
    room, long before their scaledown window is over."""
    assert large.remote(0) == 1
    began = time.monotonic()
    assert large.with_options(scaledown_window=2).remote(0) == 1
    assert time.monotonic() - began < 40
    assert large.get_current_stats().num_total_runners == 0


def test_a_call_that_waits_for_room_says_why(program: Callable[[str], Path], connected: "Installation") -> None:
    """One that must wait says why, in its own line."""
    path = program(f"""
        import time
        import farcall

        app = farcall.App("waits for room")

        @app.function(memory={HALF}, region="number=1")  # one of two workers, where there are two
        def first():
            time.sleep(4)

        @app.function(memory={HALF}, region="number=1")  # one of two workers, where there are two
        def second():
            return "second"

        @app.local_entrypoint()
        def main():
            call = first.spawn()
            while not first.get_current_stats().num_running_inputs:
                time.sleep(0.02)
            print(second.remote())
            call.get()
    """)
    done = connected.farcall("run", path)
    assert done.stdout == "second\n"
    assert re.search(
        rf"waiting for room on (this machine|1 worker): it needs {HALF} MiB of memory and \d+ MiB are free; "
        rf"waits for room has {HALF} MiB",
        done.stderr,
    ), done.stderr


def test_cpu_is_shared() -> None:
    """cpu is overcommitted by shares: several containers that each ask for all cores run beside each other."""
    variant = meet.with_options(cpu=ALL, scaledown_window=2)
    assert len(set(variant.map([4] * 4))) == 4


def test_a_function_gets_its_first_container_whatever_cpu_its_callers_hold() -> None:
    """Callers may hold all shares of cpu while they wait for a function that has no container yet."""
    assert sorted(outer.map(range(16))) == list(range(1, 17))


# --- fair


def test_who_comes_later_is_not_behind_all_that_others_have_to_do() -> None:
    """Fair between apps: room that comes free goes to the app that has least."""

    def nap(seconds: float) -> float:
        import time

        began = time.monotonic()
        time.sleep(seconds)
        return began

    many, few = farcall.App("many"), farcall.App("few")
    options: Any = {"serialized": True, "memory": HALF // 2, "single_use_containers": True}
    long, short = many.function(**options)(nap), few.function(**options)(nap)
    with many.run(), few.run():
        first = [long.spawn(2.0) for _ in range(4)]  # as many as there is room for
        others = [long.spawn(0.1) for _ in range(11)]
        began = short.remote(0.0)
        behind = [call.get() for call in others if call.get() > began]
        assert all(call.get() for call in first)
    assert len(behind) >= 6
