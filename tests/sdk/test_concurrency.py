"""What @concurrent and @batched accept, and what cannot be had together."""

from typing import Any

import pytest

import farcall
from farcall.errors import InvalidError
from farcall.sdk import batches, build
from farcall.sdk.function import Function
from farcall.spec.function import Batching, Concurrency, FunctionSpec


def f(x: int) -> int:
    return x


def declared(*decorators: Any, target: Any = f, **options: Any) -> Function[..., Any, Any]:
    for decorator in decorators:
        target = decorator(target)
    return farcall.App().function(serialized=True, **options)(target)


def spec_of(own: farcall.App) -> FunctionSpec:
    (spec,) = build.Preparation(own, "ap-test", build.Surroundings(local=True)).functions()
    return spec


def test_specs_carry_what_was_declared() -> None:
    own = farcall.App()
    own.function(name="f")(farcall.concurrent(max_inputs=10, target_inputs=5)(f))
    assert spec_of(own).concurrency == Concurrency(10, 5)
    assert spec_of(own).batching is None
    own = farcall.App()
    own.function(name="f")(farcall.concurrent(max_inputs=3)(farcall.batched(max_batch_size=4, wait_ms=100)(f)))
    spec = spec_of(own)
    assert spec.concurrency == Concurrency(3, 3)
    assert spec.batching == Batching(4, 100)
    assert spec.max_held == 12

    own = farcall.App()

    @own.cls(serialized=True)
    @farcall.concurrent(max_inputs=7)
    class Model:
        @farcall.batched(max_batch_size=2, wait_ms=0)
        def run(self, xs: list[int]) -> list[int]:
            return xs

    spec = spec_of(own)
    assert (spec.concurrency, spec.batching) == (Concurrency(7, 7), Batching(2, 0))
    assert Model().run.local([1]) == [1]


def nothing() -> list[int]:
    return []


def later(xs: list[int]) -> Any:
    yield xs


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: farcall.concurrent(), "max_inputs is missing"),
        (lambda: farcall.concurrent(max_inputs=0), "max_inputs=0 is not 1 to 1000"),
        (lambda: farcall.concurrent(max_inputs=-3), "max_inputs=-3 is not 1 to 1000"),
        (lambda: farcall.concurrent(max_inputs=1_000_000), "is not 1 to 1000"),
        (lambda: farcall.concurrent(max_inputs=2.5), "max_inputs=2.5 is not a whole number"),  # type: ignore[arg-type]
        (lambda: farcall.concurrent(max_inputs=True), "is not a whole number"),
        (lambda: farcall.concurrent(max_inputs=2, target_inputs=3), "target_inputs=3 is not 1 to 2"),
        (lambda: farcall.concurrent(max_inputs=2, target_inputs=0), "target_inputs=0 is not 1 to 2"),
        (lambda: farcall.batched(max_batch_size=0, wait_ms=0), "max_batch_size=0 is not 1 to 1000"),
        (lambda: farcall.batched(max_batch_size=1001, wait_ms=0), "not 1 to 1000"),
        (lambda: farcall.batched(max_batch_size=1, wait_ms=-1), "not 0 to 600000"),
        (lambda: farcall.batched(max_batch_size=1, wait_ms=600_001), "not 0 to 600000"),
        (lambda: farcall.batched(max_batch_size=1, wait_ms="1"), "not a whole number"),  # type: ignore[arg-type]
        (lambda: farcall.concurrent(max_inputs=2)(farcall.method()(f)), "goes on the class"),
        (lambda: farcall.concurrent(max_inputs=2)(declared()), "swap the two lines"),
        (lambda: farcall.batched(max_batch_size=1, wait_ms=0)(later), "a generator cannot be"),
    ],
)
def test_bounds(declare: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        declare()


BATCHED = farcall.batched(max_batch_size=20, wait_ms=0)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (
            lambda: declared(farcall.concurrent(max_inputs=2), single_use_containers=True),
            "single_use_containers=True gives each input its own container, so not max_inputs=2",
        ),
        (lambda: declared(BATCHED, single_use_containers=True), "so not batches"),
        (lambda: declared(BATCHED, farcall.concurrent(max_inputs=501)), "more than 10,000 inputs in one container"),
        (lambda: declared(BATCHED, target=lambda x=1: x, name="g"), "g: .*cannot have default arguments"),
        (lambda: declared(BATCHED, target=nothing, name="g"), "g: .*needs a parameter"),
        (lambda: declared(BATCHED, target=lambda *xs: [], name="g"), r"g: .*cannot take \*xs"),
        (lambda: declared(BATCHED, target=lambda **xs: [], name="g"), r"g: .*cannot take \*\*xs"),
        (lambda: declared(BATCHED, target=lambda x, *, y: [], name="g"), "the parameter y .* is keyword-only"),
    ],
)
def test_what_cannot_be_had_together(declare: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        declare()


def test_a_batched_method_is_alone() -> None:
    class Two:
        @farcall.batched(max_batch_size=2, wait_ms=0)
        def run(self, xs: list[int]) -> list[int]:
            return xs

        @farcall.method()
        def other(self) -> None: ...

    with pytest.raises(InvalidError, match="can have no other method"):
        farcall.App().cls(serialized=True)(Two)


def test_rows_and_results() -> None:
    names = ("x", "y")
    assert list(batches.row("f", names, (1,), {"y": 2})) == [1, 2]
    assert list(batches.row("f", names, (), {"y": 2, "x": 1})) == [1, 2]
    for args, kwargs, message in (
        ((1, 2, 3), {}, "takes 2 arguments for each item but 3 were given"),
        ((1, 2), {"x": 3}, "multiple values for argument 'x'"),
        ((1, 2), {"z": 3}, "unexpected keyword argument 'z'"),
        ((1,), {}, "misses the argument y"),
    ):
        with pytest.raises(TypeError, match=message):
            batches.row("f", names, args, kwargs)
    assert batches.columns([[1, 2], (3, 4)]) == [[1, 3], [2, 4]]
    assert batches.results("f", [5, 6], 2) == [5, 6]
    for wrong in ((5, 6), [5], [5, 6, 7], None, "ab", {1: 5, 2: 6}):
        with pytest.raises(InvalidError, match=r"f is @farcall\.batched"):
            batches.results("f", wrong, 2)
