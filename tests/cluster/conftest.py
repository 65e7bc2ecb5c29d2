"""Two workers that have joined over TLS, each in a network namespace of its own; and the port alone."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from farcall.cluster.listener import Listener
from farcall.content.store import Store
from tests.cluster.listening import LEASE, Host, Port
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


@pytest.fixture
def port(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[Callable[[Port], Awaitable[None]]], None]:
    """On the loop that servers run on, or on the one that a test names."""
    loops = getattr(request, "param", uvloop.new_event_loop)

    def run(test: Callable[[Port], Awaitable[None]]) -> None:
        async def main() -> None:
            host = Host()
            listener = Listener(host, "sr-test", tmp_path / "cluster", Store(tmp_path / "content"), LEASE)  # type: ignore[arg-type]
            await listener.listen("127.0.0.1:0")
            try:
                await test(Port(listener, host, tmp_path))
            finally:
                await listener.close()

        with asyncio.Runner(loop_factory=loops) as runner:
            runner.run(asyncio.wait_for(main(), 60))

    return run
