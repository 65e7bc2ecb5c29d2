"""Commands in containers that run, as the worker starts them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from farcall.launcher.messages import ExecEnded
from farcall.wire.descriptors import close_all

if TYPE_CHECKING:
    from farcall.launcher.client import LauncherClient


class ExecProcess(NamedTuple):
    """A command that runs. The descriptors belong to the caller; on a terminal all three are the same one, its
    controlling end. `end` is how it ended, once it has."""

    container_id: str
    exec_id: int
    stdin: int
    stdout: int
    stderr: int
    end: asyncio.Future[ExecEnded]


class Execs:
    """The commands of one worker."""

    def __init__(self) -> None:
        self._ends: dict[int, asyncio.Future[ExecEnded]] = {}

    async def start(
        self,
        launcher: LauncherClient,
        container_id: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        workdir: str,
        terminal: tuple[int, int] | None,
    ) -> ExecProcess:
        """Starts a command. Raises as `LauncherClient.start_exec` does."""
        ours: list[int] = []
        theirs: list[int] = []
        try:
            if terminal is None:
                for number in range(3):
                    read, write = os.pipe()
                    ours.append(write if number == 0 else read)
                    theirs.append(read if number == 0 else write)
            exec_id, leader = await launcher.start_exec(
                container_id,
                command,
                environment=environment,
                workdir=workdir,
                streams=theirs,
                terminal=terminal,
            )
        except BaseException:
            close_all(tuple(ours))
            raise
        finally:
            close_all(tuple(theirs))
        stdin, stdout, stderr = ours if terminal is None else (leader, leader, leader)
        return ExecProcess(container_id, exec_id, stdin, stdout, stderr, self._end_of(exec_id))

    def ended(self, ended: ExecEnded) -> None:
        """The launcher tells of an end, perhaps of one whose start has not been heard of yet."""
        self._end_of(ended.exec_id).set_result(ended)

    def lost(self) -> None:
        """The launcher is gone, and the commands with their containers."""
        for exec_id, end in self._ends.items():
            if not end.done():
                end.set_result(ExecEnded(exec_id, None, 9))
        self._ends.clear()

    def forget(self, process: ExecProcess) -> None:
        """Its end has been seen."""
        self._ends.pop(process.exec_id, None)

    def _end_of(self, exec_id: int) -> asyncio.Future[ExecEnded]:
        if exec_id not in self._ends:
            self._ends[exec_id] = asyncio.get_running_loop().create_future()
        return self._ends[exec_id]
