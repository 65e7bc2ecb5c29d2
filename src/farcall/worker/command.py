"""A container that runs a command instead of a function: a step of an image build."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from farcall import errors
from farcall.launcher.client import ContainerFds
from farcall.launcher.messages import Exited
from farcall.spec.container import ContainerSpec
from farcall.wire.descriptors import close_all
from farcall.wire.page import SharedPage
from farcall.worker.pipes import OutputPipe

if TYPE_CHECKING:
    from farcall.launcher.client import LauncherClient

_DRAIN_SECONDS = 2.0  # for what lies in the pipes of a container that is gone


class Ended(NamedTuple):
    """How a command's container ended, and what it had to do without: see `Started.notes`."""

    exited: Exited
    notes: tuple[str, ...]


class Commands:
    """The command containers of one worker."""

    def __init__(self) -> None:
        self._ends: dict[str, asyncio.Future[Exited]] = {}

    def __contains__(self, container_id: str) -> bool:
        return container_id in self._ends

    async def run(self, launcher: LauncherClient, spec: ContainerSpec, on_text: Callable[[str], None]) -> Ended:
        """Runs the container to its end. What it writes to both streams goes to `on_text`, line by line.

        Cancelled, it kills the container and returns when nothing of it is left. Raises ContainerStartError where it
        cannot be made and ConnectionError where it is lost with its launcher.
        """
        loop = asyncio.get_running_loop()
        end = self._ends[spec.container_id] = loop.create_future()
        drained: list[asyncio.Future[None]] = []
        theirs: list[int] = []
        pipes: list[OutputPipe] = []
        try:
            for _ in range(2):
                read, write = os.pipe()
                theirs.append(write)
                over = loop.create_future()
                drained.append(over)
                pipes.append(OutputPipe(read, on_text, functools.partial(_finish, over)))
            control, unused = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            page = SharedPage.create()
            theirs += [control.detach(), page]
            unused.close()  # a command has nobody to talk to
            # Asked for as a task: a cancellation must not lose the answer, which says that the container exists.
            starting = asyncio.ensure_future(launcher.start(spec, ContainerFds(theirs[2], theirs[0], theirs[1], page)))
            try:
                started = await asyncio.shield(starting)
            except asyncio.CancelledError:
                with contextlib.suppress(errors.FarcallError):
                    await self._kill((await starting).pidfd, end)
                raise
            finally:
                close_all(tuple(theirs))
                theirs.clear()
            try:
                exited = await asyncio.shield(end)
            except asyncio.CancelledError:
                await self._kill(os.dup(started.pidfd), end)
                raise
            finally:
                os.close(started.pidfd)
            await asyncio.wait(drained, timeout=_DRAIN_SECONDS)
            return Ended(exited, tuple(started.notes))
        finally:
            close_all(tuple(theirs))
            for pipe in pipes:
                pipe.close()
            del self._ends[spec.container_id]

    async def _kill(self, pidfd: int, end: asyncio.Future[Exited]) -> None:
        """Ends a container and waits until nothing of it is left; closes the descriptor."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        with contextlib.suppress(errors.FarcallError):
            await end

    def exited(self, exited: Exited) -> bool:
        """The launcher tells of an end; False where it is none of these."""
        end = self._ends.get(exited.container_id)
        if end is not None and not end.done():
            end.set_result(exited)
        return end is not None

    def lost(self) -> None:
        """The launcher is gone, and its containers with it."""
        for end in self._ends.values():
            if not end.done():
                end.set_exception(errors.ConnectionError("the launcher ended, and with it the step's container"))


def _finish(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)
