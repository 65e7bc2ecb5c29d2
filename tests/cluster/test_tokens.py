"""Tokens, and the addresses in them."""

from pathlib import Path

import pytest

from farcall import errors
from farcall.cluster.tokens import Tokens, split_address


def test_an_address_is_a_host_and_a_port() -> None:
    assert split_address("10.0.0.5:7443") == ("10.0.0.5", 7443)
    assert split_address("[fd00::5]:7443") == ("fd00::5", 7443)
    assert split_address("bücher.example:0") == ("bücher.example", 0)


@pytest.mark.parametrize(
    "address",
    [
        *("", "host", "host:", ":7443", "host:65536", "host:-1", "host:²", "host:٣", f"host:{'9' * 5000}"),
        *("a b:1", "a\0b:1", "a..b:1", f"{'a' * 64}:1", "http://host:1"),
    ],
)
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(errors.InvalidError, match="is no address: HOST:PORT") as refused:
        split_address(address)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("lifetime", [0.0, -1.0, 1e12, float("inf"), float("nan")])
def test_a_lifetime_that_no_date_has_is_refused(tmp_path: Path, lifetime: float) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    with pytest.raises(errors.InvalidError, match="at most 3650 days"):
        tokens.create("", lifetime, "127.0.0.1:1", "0" * 64, 0.0)
    assert tokens.all(0.0) == []
