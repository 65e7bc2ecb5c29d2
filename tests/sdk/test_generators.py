"""Remote generators with a real server: items in order, no further ahead than the window, closed when left."""

import importlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from farcall.sdk import client
from farcall.wire.messages import GENERATOR_WINDOW
from tests.conftest import Installation


@pytest.fixture(scope="module")
def app(server: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Generators, run by this process; they note what they do in a dictionary that another function returns."""
    folder = tmp_path_factory.mktemp("generators")
    (folder / "generated.py").write_text(
        "import farcall\n"
        "app = farcall.App('generators')\n"
        "@app.cls(max_containers=1)\n"
        "class Source:\n"
        "    @farcall.enter()\n"
        "    def begin(self):\n"
        "        self.made, self.closed = 0, 0\n"
        "    @farcall.method()\n"
        "    def count(self, n, size=0):\n"
        "        self.made = 0\n"
        "        try:\n"
        "            for x in range(n):\n"
        "                self.made += 1\n"
        "                yield bytes(size) if size else x\n"
        "        finally:\n"
        "            self.closed += 1\n"
        "    @farcall.method()\n"
        "    def fail(self):\n"
        "        yield 1\n"
        "        raise ValueError('mine')\n"
        "    @farcall.method()\n"
        "    def numbers(self):\n"
        "        return self.made, self.closed\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        patch.setattr(client, "_current", None)  # another test's server is not to be used
        sys.modules.pop("generated", None)
        generated = importlib.import_module("generated")
        with generated.app.run():
            yield generated.Source()
        client.current().close()


def test_items_come_in_order(app: Any) -> None:
    assert list(app.count.remote_gen(1000)) == list(range(1000))


def test_large_items_come_whole(app: Any) -> None:
    assert [len(item) for item in app.count.remote_gen(100, 100_000)] == [100_000] * 100


def test_what_it_raises_comes_after_its_items(app: Any) -> None:
    items = app.fail.remote_gen()
    assert next(items) == 1
    with pytest.raises(ValueError, match="mine"):
        next(items)


def test_a_generator_that_is_left_is_closed_and_was_not_far_ahead(app: Any) -> None:
    closed_before = app.numbers.remote()[1]
    items = app.count.remote_gen(10**9)
    assert [next(items) for _ in range(10)] == list(range(10))
    items.close()
    deadline = time.monotonic() + 20
    while (numbers := app.numbers.remote())[1] == closed_before:
        assert time.monotonic() < deadline
    assert numbers[0] <= 10 + 2 * GENERATOR_WINDOW


def test_two_generators_do_not_mix(app: Any) -> None:
    first, second = app.count.remote_gen(5), app.count.remote_gen(5)
    assert next(first) == 0
    assert list(first) == [1, 2, 3, 4]
    assert list(second) == [0, 1, 2, 3, 4]


def test_items_can_be_awaited(app: Any) -> None:
    import asyncio

    async def main() -> list[int]:
        return [item async for item in app.count.remote_gen.aio(300)]

    assert asyncio.run(main()) == list(range(300))
