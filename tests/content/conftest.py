from collections.abc import Iterator
from pathlib import Path

import pytest

from farcall.content import Lease, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def lease(store: Store) -> Iterator[Lease]:
    with store.lease("test") as lease:
        yield lease
