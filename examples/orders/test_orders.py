"""Tests of an app: no server, no root, no waiting.

pytest examples/orders
"""

import pytest
from orders import ORDERS, Converter, app, fetch_rates, total

from farcall import errors


@pytest.fixture
def run(farcall_run):
    return farcall_run(app)


def test_orders_are_added_up(run):
    assert total.remote(ORDERS) == (234.0, ["4"])


def test_rates_are_asked_for_once_for_each_container(run):
    total.remote(ORDERS)
    total.remote(ORDERS)
    assert len(run.calls(fetch_rates)) == 1
    run.clock.advance(600)  # nobody ordered for ten minutes: the container goes
    total.remote(ORDERS)
    assert len(run.calls(fetch_rates)) == run.starts(Converter) == 2


def test_a_bank_that_is_down_for_a_while(run):
    run.fail(fetch_rates, ConnectionError("the bank is closed"), times=3)
    assert total.remote(ORDERS)[0] == 234.0
    assert run.calls(fetch_rates)[0].delays == [2, 4, 8]


def test_a_bank_that_hangs(run):
    run.slow(fetch_rates, seconds=60, times=4)
    with pytest.raises(errors.FunctionTimeoutError):
        total.remote(ORDERS)


def test_a_machine_that_is_lost(run):
    run.lose(Converter().euros, after=True)
    assert total.remote(ORDERS)[0] == 234.0
    assert run.starts(Converter) == 2


def test_other_rates(run):
    run.replace(fetch_rates, lambda: "XXX,2\n")
    assert total.remote(ORDERS) == (14.0, ["1", "2", "3"])
