"""Two workers that have joined over TLS, each in a network namespace of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.machines import Cluster, cluster
from tests.conftest import leftovers, short_directory, snapshot


@pytest.fixture(scope="module")
def two_workers(shared: Path) -> Iterator[Cluster]:
    """Shared by the tests of a module, which leave both workers as they found them. Nothing may stay behind."""
    with short_directory() as root:
        before = snapshot(root)
        with cluster(root, shared, lease="6s") as made:
            yield made
        if left := leftovers(root, before):
            pytest.fail("stayed behind after the workers:\n  " + "\n  ".join(left), pytrace=False)
