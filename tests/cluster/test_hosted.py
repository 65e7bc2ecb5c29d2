"""Containers that a worker runs for its server: when their channel ends."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from farcall.cluster.ends import LocalEnd
from farcall.cluster.hosted import Hosted
from farcall.content import Store
from farcall.wire import cluster
from farcall.worker.container import State


def test_a_container_whose_channel_ends_while_its_content_comes_is_not_made(tmp_path: Path) -> None:
    """As when the link has no descriptor for what comes next. Its server has given it to another worker by then."""

    async def test() -> None:
        arrived, made = asyncio.Event(), []

        async def given(lease: Any, function: Any, asked: Any) -> tuple[Any, None]:
            await arrived.wait()
            return function, None

        def start(*arguments: Any) -> Any:
            made.append(arguments)
            return SimpleNamespace(mounted=True, state=State.LOADING, transport=None, kill=lambda reason: None)

        agent: Any = SimpleNamespace(
            name="w1", store=Store(tmp_path / "content"), given=given, worker=SimpleNamespace(start=start)
        )
        forgotten: list[Hosted] = []
        agent.forget = forgotten.append
        end = LocalEnd(cluster.ToWorker)
        function: Any = SimpleNamespace(concurrency=SimpleNamespace(max_inputs=1))
        asked: Any = SimpleNamespace(
            container_id="ta-1", app_id="ap-1", function=function, params=b"", gpus=(), image=None, volumes=()
        )
        hosted = Hosted(agent, end, asked, ())
        await asyncio.sleep(0)  # it asks for its content
        end.cut()
        arrived.set()
        await asyncio.wait_for(hosted._starting, 30)
        assert not made
        assert forgotten

    asyncio.run(test())
