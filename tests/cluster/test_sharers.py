"""Which workers may have which trees, as the server tells them."""

from types import SimpleNamespace
from typing import Any

import pytest

from farcall.cluster import sharers as sharers_module
from farcall.cluster.sharers import Sharers
from farcall.wire.workers import NO_PEERS


class Machine:
    """A worker that notes what it is told."""

    def __init__(self, number: int, peer_port: int = 7000) -> None:
        self.worker_id = f"wk-{number}"
        self.address = f"10.0.0.{number}"
        self.attach = SimpleNamespace(peer_port=peer_port)
        self.known: dict[str, list[str]] = {}

    def tell_sharers(self, message: Any) -> None:
        self.known[message.tree] = [f"{one.host}:{one.port}" for one in message.workers]


def join(sharers: Sharers, machine: Any, tree: str) -> None:
    sharers.join(machine, tree, in_stores=True)


def test_each_hears_of_the_others_that_come_and_go() -> None:
    sharers, one, two = Sharers(), Machine(1), Machine(2)
    join(sharers, one, "a")
    assert one.known == {"a": ["10.0.0.1:7000"]}
    join(sharers, two, "a")
    join(sharers, two, "b")
    assert one.known == {"a": ["10.0.0.1:7000", "10.0.0.2:7000"]}, "it hears nothing of what it may not have"
    assert two.known == {"a": ["10.0.0.1:7000", "10.0.0.2:7000"], "b": ["10.0.0.2:7000"]}
    assert set(sharers.trees(one)) == {"a"}  # type: ignore[arg-type]
    two.address = "10.0.0.7"
    sharers.moved(two)  # type: ignore[arg-type]
    assert one.known["a"] == ["10.0.0.1:7000", "10.0.0.7:7000"]
    sharers.leave(two)  # type: ignore[arg-type]
    assert one.known["a"] == ["10.0.0.1:7000"]
    assert not sharers.trees(two)  # type: ignore[arg-type]


def test_one_of_an_earlier_version_neither_hears_nor_is_named() -> None:
    sharers, old, new = Sharers(), Machine(1, NO_PEERS), Machine(2)
    join(sharers, old, "a")
    join(sharers, new, "a")
    assert old.known == {}
    assert new.known == {"a": ["10.0.0.2:7000"]}
    assert set(sharers.trees(old)) == {"a"}, "the server gives it what it needs"  # type: ignore[arg-type]


def test_what_a_worker_was_given_first_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharers_module, "KEPT_TREES", 2)
    sharers, one, two = Sharers(), Machine(1), Machine(2)
    for tree in ("a", "b", "a"):
        join(sharers, one, tree)
    join(sharers, two, "b")
    join(sharers, one, "c")
    assert set(sharers.trees(one)) == {"a", "c"}  # type: ignore[arg-type]
    assert one.known["b"] == []
    assert two.known["b"] == ["10.0.0.2:7000"]
