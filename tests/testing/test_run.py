"""Apps under test in this process: what retries, timeouts, cold starts and losses do, on a clock that is moved."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

import farcall
from farcall import errors, testing
from farcall.testing import Run

app = farcall.App("tested")
events: list[str] = []


@app.function(retries=farcall.Retries(max_retries=2, initial_delay=1.0, backoff_coefficient=3.0), timeout=10)
def fetch(url: str, fallback: str | None = None) -> str:
    events.append(f"fetch {url}")
    return f"page of {url}"


@app.function(timeout=5)
async def later(number: int) -> int:
    await asyncio.sleep(0)
    return number + 1


@app.function()
def items(count: int) -> Iterator[int]:
    yield from range(count)


@app.function(single_use_containers=True)
def once() -> None: ...


@app.function(max_containers=1)
def crawl(urls: list[str]) -> list[str]:
    return list(fetch.map(urls, return_exceptions=True))


@app.cls(scaledown_window=30, startup_timeout=20)
class Model:
    size: int = farcall.parameter(default=1)

    @farcall.enter()
    def load(self) -> None:
        events.append(f"load {self.size}")
        self.uses = 0

    @farcall.method()
    def predict(self, x: int) -> tuple[int, int]:
        self.uses += 1
        return x * self.size, self.uses

    @farcall.exit()
    def close(self) -> None:
        events.append(f"close {self.size}")


@pytest.fixture(autouse=True)
def no_events() -> None:
    events.clear()


@pytest.fixture
def run(farcall_run: Callable[[farcall.App], Run]) -> Run:
    return farcall_run(app)


def test_calls_are_recorded(run: Run) -> None:
    assert fetch.remote("a", fallback="b") == "page of a"
    assert list(fetch.map(["c", "d"])) == ["page of c", "page of d"]
    assert asyncio.run(later.remote.aio(1)) == 2
    assert list(items.remote_gen(3)) == [0, 1, 2]
    assert fetch.spawn("e").get() == "page of e"
    first, second, third, fourth = run.calls(fetch)
    assert (first.args, first.kwargs, first.result, first.error) == (("a",), {"fallback": "b"}, "page of a", None)
    assert [call.args for call in (second, third, fourth)] == [("c",), ("d",), ("e",)]
    assert [call.name for call in run.calls()] == ["fetch", "fetch", "fetch", "later", "items", "fetch"]
    assert {call.attempts for call in run.calls()} == {1}


def test_a_failed_attempt_is_retried_as_declared(run: Run) -> None:
    run.fail(fetch, OSError("no route"), times=2)
    assert fetch.remote("a") == "page of a"
    (call,) = run.calls(fetch)
    assert (call.attempts, call.delays, run.clock.now()) == (3, [1.0, 3.0], 4.0)
    assert events == ["fetch a"]  # the first two did not get that far


def test_the_last_failure_is_the_caller_s(run: Run) -> None:
    run.fail(fetch, OSError("no route"), times=3)
    with pytest.raises(OSError, match="no route") as caught:
        fetch.remote("a")
    assert caught.value.__notes__ == ["after 3 attempts"]
    assert run.calls(fetch)[0].error is caught.value
    run.fail(later, KeyError)  # has no retries
    with pytest.raises(KeyError):
        asyncio.run(later.remote.aio(1))


def test_a_map_goes_on_beside_failures(run: Run) -> None:
    run.fail(fetch, ValueError("bad"), times=3)
    first, second = crawl.remote(["a", "b"])
    assert isinstance(first, ValueError)
    assert second == "page of b"


def test_a_result_that_is_lost(run: Run) -> None:
    """At least once: what has run can run again."""
    run.lose(fetch, after=True)
    assert fetch.remote("a") == "page of a"
    assert events == ["fetch a", "fetch a"]
    assert run.calls(fetch)[0].delays == [0.0]
    assert run.starts(fetch) == 2


def test_losses_spend_no_retries_and_end(run: Run) -> None:
    run.lose(later, times=8)
    assert asyncio.run(later.remote.aio(1)) == 2
    run.lose(later, times=9)
    with pytest.raises(errors.ContainerCrashedError, match="later was lost 9 times in a row"):
        asyncio.run(later.remote.aio(1))
    assert run.clock.now() == 0


def test_attempts_that_take_too_long(run: Run) -> None:
    run.slow(fetch, 9)
    assert fetch.remote("a") == "page of a"
    assert run.clock.now() == 9
    run.slow(fetch, 60, times=3)
    with pytest.raises(errors.FunctionTimeoutError, match="fetch ran longer than its timeout of 10 s"):
        fetch.remote("b")
    assert run.calls(fetch)[1].delays == [1.0, 3.0]
    assert run.clock.now() == 9 + 3 * 10 + 4
    assert events == ["fetch a"]


def test_code_that_waits_on_the_clock_can_time_out(run: Run) -> None:
    run.replace(later, lambda seconds: run.clock.sleep(seconds))
    assert later.remote(5) is None
    with pytest.raises(errors.FunctionTimeoutError):
        later.remote(5.5)


def test_containers_stay_for_their_window(run: Run) -> None:
    model = Model(size=2)
    assert model.predict.remote(3) == (6, 1)
    run.clock.advance(29)
    assert model.predict.remote(3) == (6, 2)
    run.clock.advance(29)
    assert run.starts(Model) == 1
    run.clock.advance(1)
    assert events == ["load 2", "close 2"]
    assert model.predict.remote(3) == (6, 1)
    assert Model().predict.remote(3) == (3, 1)
    assert run.starts(Model) == 3


def test_containers_end_when_told(run: Run) -> None:
    Model().predict.remote(1)
    Model(size=2).predict.remote(1)
    run.end_containers(Model)
    assert sorted(events) == ["close 1", "close 2", "load 1", "load 2"]
    assert Model().predict.remote(1) == (1, 1)
    once.remote()
    once.remote()
    assert run.starts(once) == 2


def test_a_crash_takes_the_container_along(run: Run) -> None:
    Model().predict.remote(1)
    run.fail(Model().predict, errors.OutOfMemoryError("too much"))
    with pytest.raises(errors.OutOfMemoryError):
        Model().predict.remote(1)
    assert events == ["load 1"]  # no exit hook
    assert Model().predict.remote(1) == (1, 1)
    assert events == ["load 1", "load 1"]


def test_cold_starts_take_time(run: Run) -> None:
    run.slow_starts(Model, 15)
    assert Model().predict.remote(1) == (1, 1)
    assert Model().predict.remote(1) == (1, 2)
    assert run.clock.now() == 15
    run.end_containers("Model")
    run.slow_starts(Model, 21)
    with pytest.raises(errors.StartupTimeoutError, match=r"Model was not ready within 20 s \(startup_timeout\)"):
        Model().predict.remote(1)
    assert run.clock.now() == 35
    assert isinstance(run.calls("Model.predict")[-1].error, errors.StartupTimeoutError)


def test_a_fake_in_a_function_s_place(run: Run) -> None:
    run.replace(fetch, lambda url, fallback=None: f"fake {url}")
    run.replace("Model.predict", lambda x: (x, 0))
    assert crawl.remote(["a"]) == ["fake a"]
    assert Model().predict.remote(7) == (7, 0)
    assert events == []
    run.fail(fetch, OSError, times=3)
    with pytest.raises(OSError):
        fetch.remote("b")


def test_values_travel_as_to_a_container(run: Run) -> None:
    given = ["a"]
    run.replace(crawl, lambda urls: urls.append("b") or urls)
    assert crawl.remote(given) == ["a", "b"]
    assert given == ["a"]
    with pytest.raises(errors.SerializationError):
        crawl.remote([lambda: events, (x for x in [])])


def test_after_the_run_the_app_is_as_before(run: Run) -> None:
    assert fetch.local("a") == "page of a"
    with testing.run(farcall.App("another")):
        pass
    assert fetch.remote("a") == "page of a"


def test_faults_that_nothing_meets_fail_the_test() -> None:
    said = r"met no attempt \(function: how many\): fetch: 2"
    with pytest.raises(AssertionError, match=said), testing.run(app) as run:
        run.fail(fetch, OSError, times=5)
        with pytest.raises(OSError):
            fetch.remote("a")


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda run: run.fail("fetsch", OSError), "fail: the app has no 'fetsch'; it has Model.predict, crawl, fetch"),
        (lambda run: run.fail(fetch, "OSError"), "'OSError' is no exception"),
        (lambda run: run.fail(fetch, KeyboardInterrupt), "is no exception"),
        (lambda run: run.fail(fetch, OSError, times=0), "times=0 is no number of attempts"),
        (lambda run: run.fail(print, OSError), "is no function of an app"),
        (lambda run: run.slow(fetch, -1), "-1 is no number of seconds"),
        (lambda run: run.replace(fetch, 5), "5 cannot be called"),
        (lambda run: run.clock.advance(-1), "time passes forward only"),
        (lambda run: run.starts("nothing"), "the app has no 'nothing'"),
    ],
)
def test_mistakes_in_a_test(run: Run, wrong: Callable[[Run], None], match: str) -> None:
    with pytest.raises(errors.InvalidError, match=match):
        wrong(run)
