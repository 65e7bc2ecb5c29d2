"""A command in a container on another machine, between the client that asked for it and that machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from farcall import errors
from farcall.wire import cluster
from farcall.wire.execs import ExecCommand, ExecEnd, ExecInput, ExecOutput, ExecResize, ExecSignal, ExecTaken

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
        self._end: asyncio.Future[ExecEnd] = asyncio.get_running_loop().create_future()

    async def run(self, message: ExecCommand) -> ExecEnd:
        """Has it run to its end. Raises what the other machine refuses it for, and ConnectionLostError where that is
        lost."""
        try:
            self._mirror.way.send(msgspec.structs.replace(message, seq=self._number))
            return await self._end
        finally:
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
        elif self._end.done():
            return
        elif message.failure is not None:
            self._end.set_exception(errors.from_code(message.failure.code, message.failure.message))
        else:
            self._end.set_result(_decode_end(message.body))

    def lost(self) -> None:
        """Its container is gone."""
        if not self._end.done():
            self._end.set_result(ExecEnd(None, 9))
