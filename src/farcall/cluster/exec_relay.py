"""A command in a container on another machine, between the client that asked for it and that machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from farcall import errors
from farcall.wire import cluster
from farcall.wire.execs import ExecCommand, ExecEnd, ExecInput, ExecOutput, ExecResize, ExecSignal, ExecTaken
from farcall.wire.transport import UNREAD_BYTES
from farcall.worker.exec_streams import BEHIND_PAUSE, UNSENT_LIMIT

if TYPE_CHECKING:
    from farcall.cluster.mirror import Mirror
    from farcall.worker.exec_streams import Peer

_decode_end = msgspec.msgpack.Decoder(ExecEnd).decode


class ExecRelay:
    """One command. The client knows it by the number of its request, the machine by one of its own."""

    def __init__(self, mirror: Mirror, peer: Peer, seq: int, number: int, over: Callable[[], object]) -> None:
        self._mirror = mirror
        self._peer = peer
        self._seq = seq
        self._number = number
        self._over = over
        self._holding: asyncio.Task[None] | None = None
        self._end: asyncio.Future[ExecEnd] = asyncio.get_running_loop().create_future()

    async def run(self, message: ExecCommand) -> ExecEnd:
        """Has it run to its end. Raises what the other machine refuses it for, and ConnectionLostError where that is
        lost."""
        try:
            self._mirror.way.send(msgspec.structs.replace(message, seq=self._number))
            return await self._end
        finally:
            if self._holding is not None:
                self._holding.cancel()
            self._over()

    def handle(self, message: ExecInput | ExecResize | ExecSignal) -> None:
        """What the client sends to it."""
        self._mirror.way.send(msgspec.structs.replace(message, command=self._number))

    def signal(self, number: int) -> None:
        """Signals it."""
        self._mirror.way.send(ExecSignal(self._number, number))

    def take(self, message: ExecOutput | ExecTaken | cluster.ExecEnded) -> None:
        """What the machine tells of it."""
        if not isinstance(message, cluster.ExecEnded):
            self._peer.send(msgspec.structs.replace(message, seq=self._seq))
            if self._peer.buffered > UNSENT_LIMIT:
                self._hold_back()
        elif self._end.done():
            return
        elif message.failure is not None:
            self._end.set_exception(errors.from_code(message.failure.code, message.failure.message))
        else:
            self._end.set_result(_decode_end(message.body))

    def _hold_back(self) -> None:
        """The client is behind: until it has caught up, its command is to be read no further, there."""
        if self._peer.buffered > UNREAD_BYTES:
            self._mirror.machine.misbehaves(
                f"it does not hold a command's output: {UNREAD_BYTES // 2**20} MiB wait for a client"
            )
        if self._holding is None:
            self._holding = asyncio.ensure_future(self._hold())

    async def _hold(self) -> None:
        self._mirror.way.send(cluster.HoldExec(self._number, True))
        while self._peer.buffered > UNSENT_LIMIT:  # noqa: ASYNC110 - a connection does not say when it has room
            await asyncio.sleep(BEHIND_PAUSE)
        self._holding = None
        self._mirror.way.send(cluster.HoldExec(self._number, False))

    def lost(self) -> None:
        """Its container is gone."""
        if not self._end.done():
            self._end.set_result(ExecEnd(None, 9))
