"""Running a job: work on content that takes long, in a process of its own, as the server sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import msgspec

from farcall import _private, errors
from farcall.builder import requests

T = TypeVar("T")

_LINE_LIMIT = 64 * 2**20  # bytes of one word
_TERM_SECONDS = 5.0  # a bootstrap that is told to end takes its mounts down first


async def run_job(request: requests.Request, result: type[T], say: Callable[[str], None] = lambda line: None) -> T:
    """What `request` results in. `say` gets the lines that the job has to tell meanwhile.

    Cancelled, it ends the job and returns when that is gone. Raises what the job raised, and InternalError where it
    ended without a word.
    """
    _, root = _private.home()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-c",
        _PROGRAM,
        root,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_LINE_LIMIT,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    wrong = asyncio.ensure_future(process.stderr.read())
    try:
        with contextlib.suppress(OSError):
            process.stdin.write(requests.encode(request))
            process.stdin.close()
        async for line in process.stdout:
            word = requests.decode_word(line)
            if isinstance(word, requests.Said):
                say(word.text)
            elif isinstance(word, requests.Failed):
                raise errors.from_code(word.code, word.message)
            else:
                return msgspec.convert(word.result, result)
        status = await process.wait()
        said = (await wrong).decode(errors="replace").strip()
        raise errors.InternalError(
            f"a job ({type(request).__name__}) ended with status {status} and no answer: {said[-2000:] or 'no output'}"
        )
    finally:
        await asyncio.shield(_end(process))
        wrong.cancel()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Sees the job's processes gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        try:
            await asyncio.wait_for(process.wait(), _TERM_SECONDS)
            return
        except TimeoutError:
            continue


# The job finds farcall where its server found it.
_PROGRAM = """\
import sys
sys.path.insert(0, sys.argv[1])
from farcall.builder.jobs import main
main()
"""
