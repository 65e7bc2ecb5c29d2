"""Farcall's own files for the Python of an image that was built elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from farcall.interpreters import private
from farcall.interpreters.probe import Details, details_of_tag

if TYPE_CHECKING:
    from farcall.spec.container import Interpreter

_making: dict[str, asyncio.Task[Path]] = {}


async def runner_for(interpreter: Interpreter) -> Path:
    """The runner directory of this machine for an image's interpreter, made where it is missing: of this machine's own
    farcall, whatever the server's. Raises `InvalidError` where what it needs cannot be fetched."""
    details = details_of_tag(interpreter.executable, interpreter.version, interpreter.tag)
    found = private.existing(details)
    if found is not None:
        return found
    making = _making.get(interpreter.tag)
    if making is None:
        making = _making[interpreter.tag] = asyncio.ensure_future(_make(details))
        making.add_done_callback(lambda _: _making.pop(interpreter.tag, None))
    return await asyncio.shield(making)


async def _make(details: Details) -> Path:
    run = asyncio.get_running_loop().run_in_executor
    work = await run(None, private.assemble, details)
    await run(None, private.compile_here, work, details)
    return await run(None, private.publish, work, details)
