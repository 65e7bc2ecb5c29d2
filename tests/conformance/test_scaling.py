"""Semantics: how many containers a function has, and what can be asked and changed while it runs."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import scaling_app
from scaling_app import Model, app, buffered, from_inside, meet, nap

import farcall
from farcall import errors

if TYPE_CHECKING:
    from tests.conftest import Installation

Eventually = Callable[..., None]


def runners(function: Any) -> int:
    return function.get_current_stats().num_total_runners


@pytest.fixture
def bounds() -> Iterator[Any]:
    """`nap`, whose bounds are afterwards what they were."""
    yield nap
    nap.autoscaler.update(min_containers=None, max_containers=None, buffer_containers=None, scaledown_window=2)


def test_app_has_the_functions() -> None:
    assert set(app.registered_functions) == {"nap", "meet", "buffered", "from_inside"}
    assert scaling_app.IDENTITY


# --- up and down


def test_one_container_for_each_input_up_at_once_and_down_after_the_window(eventually: Eventually) -> None:
    """Scales on inputs in flight and waiting: up at once, in proportion; down after the scaledown window."""
    identities, ended = zip(*meet.map([8] * 8), strict=True)
    assert len(set(identities)) == 8
    eventually(lambda: runners(meet) == 0)
    assert time.monotonic() - max(ended) >= 1.9


def test_the_buffer_is_there_while_there_is_load(eventually: Eventually) -> None:
    """buffer_containers are idle ones beyond the load, while the function is used; then they go too."""
    call = buffered.spawn(60)
    eventually(lambda: buffered.get_current_stats() == (0, 3, 1, 2))
    call.cancel()
    eventually(lambda: runners(buffered) == 0)


# --- asking and changing


def test_current_stats(bounds: Any, eventually: Eventually) -> None:
    """get_current_stats: backlog, containers, running inputs, room for more."""
    assert nap.get_current_stats()._asdict().keys() == {
        "backlog",
        "num_total_runners",
        "num_running_inputs",
        "input_headroom",
    }
    nap.update_autoscaler(max_containers=2)
    calls = [nap.spawn(60) for _ in range(5)]
    eventually(lambda: nap.get_current_stats() == (3, 2, 2, 0))
    for call in calls:
        call.cancel(terminate_containers=True)
    eventually(lambda: nap.get_current_stats()[0] == 0)


def test_a_floor_that_is_raised_starts_containers_and_one_that_is_lowered_lets_them_go(
    bounds: Any, eventually: Eventually
) -> None:
    """update_autoscaler on a live function: min_containers start at once, with no input at all."""
    settings = nap.update_autoscaler(min_containers=3)
    assert settings == (3, None, 0, 2.0)
    eventually(lambda: nap.get_current_stats()[1:] == (3, 0, 3))
    nap.remote(2.5)  # longer than the window: those that are idle are kept
    assert runners(nap) == 3
    assert nap.update_autoscaler(min_containers=1, scaledown_window=3) == (1, None, 0, 3.0)
    eventually(lambda: runners(nap) == 1)


def test_a_ceiling_that_is_lowered_takes_idle_containers_at_once(bounds: Any, eventually: Eventually) -> None:
    nap.update_autoscaler(min_containers=3, scaledown_window=3600)
    eventually(lambda: runners(nap) == 3)
    nap.update_autoscaler(min_containers=0, max_containers=1)
    eventually(lambda: runners(nap) == 1)
    assert len(set(nap.map([0.1] * 4))) == 1


def test_bounds_are_kept_until_they_are_given(bounds: Any) -> None:
    """update_autoscaler: None keeps a bound; autoscaler.update: what is not given is kept, None removes it."""
    nap.update_autoscaler(max_containers=4, buffer_containers=1)
    assert nap.update_autoscaler(max_containers=5) == (0, 5, 1, 2.0)
    assert nap.autoscaler.update(max_containers=None) == (0, None, 1, 2.0)
    assert nap.autoscaler.settings() == (0, None, 1, 2.0)
    assert asyncio.run(nap.update_autoscaler.aio(max_containers=6)).max_containers == 6
    assert asyncio.run(nap.autoscaler.settings.aio()).max_containers == 6
    assert asyncio.run(nap.get_current_stats.aio()).backlog == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_containers": -2}, "nap: min_containers=-2 is below 0"),
        ({"max_containers": 0}, "nap: max_containers=0 is below 1"),
        ({"scaledown_window": 1}, "nap: scaledown_window=1 is outside 2 to 3600 seconds"),
        ({"min_containers": "2"}, "nap: min_containers='2' is not a whole number"),
        ({"min_containers": 3, "max_containers": 2}, "nap: min_containers=3 is above max_containers=2"),
    ],
)
def test_bounds_that_cannot_be(bounds: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.InvalidError, match=message):
        nap.update_autoscaler(**changes)
    assert nap.autoscaler.settings() == (0, None, 0, 2.0)


def test_a_floor_above_the_ceiling_that_holds_is_refused(bounds: Any) -> None:
    nap.update_autoscaler(max_containers=2)
    with pytest.raises(errors.InvalidError, match="nap: min_containers=3 is above max_containers=2"):
        nap.update_autoscaler(min_containers=3)
    assert nap.autoscaler.settings().min_containers == 0


def test_each_set_of_parameters_has_bounds_of_its_own(eventually: Eventually) -> None:
    """update_autoscaler and get_current_stats of a class's instance; methods share its containers."""
    a, b = Model(name="a"), Model(name="b")
    assert a.update_autoscaler(min_containers=1) == (1, None, 0, 2.0)  # type: ignore[attr-defined]
    eventually(lambda: runners(a) == 1)
    assert b.autoscaler.settings() == (0, None, 0, 2.0)  # type: ignore[attr-defined]
    assert runners(b) == 0
    a.nap.remote(0)
    assert runners(a.nap) == 1
    with pytest.raises(errors.InvalidError, match=r"Model\.nap shares its containers .* Model\(\.\.\.\)\.update_autos"):
        a.nap.update_autoscaler(min_containers=2)  # type: ignore[attr-defined]
    a.update_autoscaler(min_containers=0)  # type: ignore[attr-defined]
    eventually(lambda: runners(a) == 0)


def test_containers_may_change_their_own_app(bounds: Any) -> None:
    assert from_inside.remote() == (7, 1)
    assert nap.autoscaler.settings().max_containers == 7


def test_bounds_survive_a_killed_server(installation: "Installation", program: Callable[[str], Any]) -> None:
    """What update_autoscaler changed holds until the app is deployed again, whatever becomes of the server."""
    path = program("""
        import os, signal, time
        import farcall
        from farcall.sdk import client

        app = farcall.App("survives")

        @app.function()
        def f():
            return 1

        if __name__ == "__main__":
            with app.run():
                f.update_autoscaler(min_containers=2, max_containers=3)
                os.kill(client.current().status().pid, signal.SIGKILL)
                deadline = time.monotonic() + 30
                while True:
                    try:
                        if f.get_current_stats().num_total_runners == 2:
                            break
                    except farcall.errors.ConnectionLostError:
                        pass
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                print(tuple(f.autoscaler.settings()))
    """)
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, str(path)], env=installation.environment, capture_output=True, text=True, timeout=90
    )
    assert done.stdout.splitlines() == ["(2, 3, 0, 60.0)"], done.stdout + done.stderr


def test_an_app_that_does_not_run_has_none() -> None:
    @farcall.App("not running").function(serialized=True)
    def f() -> None: ...

    for ask in (f.get_current_stats, f.update_autoscaler, lambda: f.autoscaler.settings()):
        with pytest.raises(errors.InvalidError, match="f cannot be called: its app is not running"):
            ask()
