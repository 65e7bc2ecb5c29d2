"""Bounds of pools, and which of them cannot be."""

import math
from typing import Any

import pytest

from farcall.errors import InvalidError
from farcall.spec.scaling import Scaling


def test_none_is_the_default_and_the_rest_stays() -> None:
    scaling = Scaling(2, 5, 1, 30.0)
    assert scaling.changed("f", {}) == scaling
    assert scaling.changed("f", {"max_containers": 3, "scaledown_window": 2}) == Scaling(2, 3, 1, 2.0)
    assert scaling.changed("f", {"max_containers": None, "min_containers": None}) == Scaling(0, None, 1, 30.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_containers": -1}, "f: min_containers=-1 is below 0"),
        ({"max_containers": 0}, "f: max_containers=0 is below 1"),
        ({"buffer_containers": 1.5}, "f: buffer_containers=1.5 is not a whole number"),
        ({"min_containers": True}, "f: min_containers=True is not a whole number"),
        ({"scaledown_window": 1}, "f: scaledown_window=1 is outside 2 to 3600 seconds"),
        ({"scaledown_window": math.nan}, "scaledown_window=nan is outside"),
        ({"scaledown_window": "2"}, "f: scaledown_window='2' is not a number of seconds"),
        ({"min_containers": 6}, "f: min_containers=6 is above max_containers=5"),
        ({"max_containers": 1}, "f: min_containers=2 is above max_containers=1"),
        ({"size": 1}, "f: a pool of containers has no bound 'size'"),
    ],
)
def test_what_cannot_be_says_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        Scaling(2, 5).changed("f", changes)
