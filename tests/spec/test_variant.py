"""Variants as values: what they change, and what a container cannot make of them."""

from typing import Any

import msgspec
import pytest

from farcall.spec.function import Batching, Concurrency, FunctionSpec, RetryPolicy, Source
from farcall.spec.secret import SecretSpec
from farcall.spec.variant import Variant

BASE = FunctionSpec("fu-1", "f", Source("m", "f"), (), cpu=(2.0, None), timeout=10.0)


def test_a_variant_keeps_what_it_does_not_change() -> None:
    variant = Variant(memory=(64, 128), batching=Batching(4, 10), secrets=(SecretSpec(values={"A": "1"}),))
    made = variant.of(BASE, "fu-2")
    assert (made.function_id, made.variant_of, made.name) == ("fu-2", "fu-1", "f")
    assert (made.cpu, made.timeout) == (BASE.cpu, BASE.timeout)
    assert (made.memory, made.batching, made.max_held) == ((64, 128), Batching(4, 10), 4)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(variant), type=Variant) == variant


@pytest.mark.parametrize(
    "wrong",
    [
        Variant(concurrency=Concurrency(1001, 1)),
        Variant(concurrency=Concurrency(0, 1)),
        Variant(batching=Batching(1001, 0)),
        Variant(batching=Batching(1, 600_001)),
        Variant(cpu=(-1.0, None)),
        Variant(memory=(0, None)),
        Variant(retries=RetryPolicy(max_retries=-1)),
    ],
)
def test_what_no_decorator_accepts_is_refused_where_it_arrives(wrong: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(wrong), type=Variant)
