"""Plain functions: results, exceptions, and what cannot travel."""

import os

import pytest

from farcall import errors
from farcall.wire import messages

from .conftest import Worker


def test_a_function_returns(worker: Worker) -> None:
    loaded = worker.load("def f(x, *, y=1):\n    return x + y\n")
    assert loaded.error is None
    assert worker.call(3) == 4
    assert worker.call("a", y="b") == "ab"
    assert worker.page.running == 0
    assert os.waitstatus_to_exitcode(worker.stop()) == 0
