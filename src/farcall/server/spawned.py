"""Spawned calls: durable from the moment they are acknowledged, until their results have been kept long enough."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from farcall import errors
from farcall.server import failures, stored
from farcall.server.call import Call, Input
from farcall.server.pool import Pool
from farcall.spec.function import MethodSpec
from farcall.state import records
from farcall.wire import messages

if TYPE_CHECKING:
    from farcall.server.app import App
    from farcall.server.server import Server
    from farcall.server.session import Session


class Spawned:
    """The calls whose results go to the store, and who waits for them."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._store = server.store
        self._waiting: dict[tuple[str, int], list[tuple[Session, int, asyncio.TimerHandle | None]]] = {}

    async def add(self, pool: Pool, method: MethodSpec, message: messages.Spawn, payloads: list[bytes]) -> None:
        """Records the call, or more inputs of it, then runs them."""
        if not message.inputs:
            raise errors.ProtocolError("a Spawn without inputs")
        # What a restarted server must know beyond the store's own columns goes with the function's name.
        if message.inputs[0].index == 0:
            record = records.Call(
                call_id=message.call_id,
                app_id=pool.app.app_id,
                function_id=encode_target(pool.function.function_id, message.method, message.params),
                function_name=pool.function.name,
            )
            await self._store.add_call(record, payloads)
        else:
            if (await self._store.call(message.call_id)).app_id != pool.app.app_id:
                raise errors.NotFoundError(f"app {pool.app.name} has no call {message.call_id}")
            await self._store.add_inputs(message.call_id, payloads, first_index=message.inputs[0].index)
        if pool.app.stopping:
            return
        call = self._server.calls.get(message.call_id)
        if call is not None and call.pool is not pool:
            raise errors.ConflictError(f"call {message.call_id} is one of another function")
        if call is None:
            call = Call(message.call_id, pool, method, "spawned", None, self._server.now())
            self._server.calls[message.call_id] = call
            pool.app.calls_pending += 1
        self._run(
            call, [(one.index, stored.unpack(payload)) for one, payload in zip(message.inputs, payloads, strict=True)]
        )

    def _run(self, call: Call, inputs: list[tuple[int, tuple[bytes, tuple[int, ...], str]]]) -> None:
        now = self._server.now()
        new: list[Input] = []
        for index, (data, fds, _) in inputs:
            call.inputs[index] = one = Input(call, index, data, fds, now)
            new.append(one)
        call.pool.submit(new)

    async def resume(self, app: App) -> None:
        """After a restart: runs what was acknowledged and has no result."""
        async for record in self._store.pending_calls(app.app_id):
            function_id, method_name, params = decode_target(record.function_id)
            try:
                pool = app.pool(function_id, params)
            except errors.FarcallError as error:
                self._server.log.error("call %s cannot be resumed: %s", record.call_id, error)
                continue
            method = pool.function.method(method_name)
            if method is None or record.call_id in self._server.calls:
                continue
            call = Call(record.call_id, pool, method, "spawned", None, self._server.now())
            self._server.calls[record.call_id] = call
            app.calls_pending += 1
            async for one in self._store.pending_inputs(record.call_id):
                payload = await self._store.input_payload(record.call_id, one.index)
                self._run(call, [(one.index, stored.unpack(payload))])

    def deliver(self, call: Call, outputs: list[messages.Output], fds: list[int]) -> None:
        """Records results, then tells who waits for them."""
        position = 0
        for output in outputs:
            mine = tuple(fds[position : position + output.descriptors])
            position += output.descriptors
            self._server.spawn(self._record(call, output, mine))

    async def _record(self, call: Call, output: messages.Output, fds: tuple[int, ...]) -> None:
        status = output.status
        try:
            payload = stored.pack(output.data, fds, output.container_id)
        except errors.FarcallError as error:
            status = messages.PLATFORM_ERROR
            failure = failures.encode(error, call_id=call.call_id, container_id=output.container_id)
            payload = stored.pack(failure, (), output.container_id)
        while True:
            try:
                await self._store.record_output(call.call_id, output.index, status, payload)
                break
            except errors.ResourceExhaustedError as error:
                # The result is there and must not be lost for want of room: it is kept until there is some.
                self._server.log.error("the result of %s cannot be recorded yet: %s", call.call_id, error)
                await asyncio.sleep(1.0)
            except errors.FarcallError as error:
                self._server.log.error("the result of %s was not recorded: %s", call.call_id, error)
                break
        if not call.inputs:
            self._forget_call(call)
        await self._tell(call.call_id, output.index)

    def _forget_call(self, call: Call) -> None:
        if self._server.calls.get(call.call_id) is call:
            del self._server.calls[call.call_id]
            call.pool.app.calls_pending -= 1

    async def _tell(self, call_id: str, index: int) -> None:
        for session, seq, timer in self._waiting.pop((call_id, index), []):
            if timer is not None:
                timer.cancel()
            await self._answer(session, seq, call_id, index)

    # --- asking

    def get(self, session: Session, message: messages.GetOutput) -> None:
        """Answers with the result, now or when it is there."""
        self._server.spawn(self._get(session, message))

    async def _get(self, session: Session, message: messages.GetOutput) -> None:
        key = message.call_id, message.index
        if not self._is_outstanding(*key) and await self._answer(session, message.seq, *key, or_wait=True):
            return
        if message.timeout == 0:
            session.send(messages.Pending(message.seq))
            return
        timer = None
        if message.timeout is not None:
            timer = self._server.loop.call_later(message.timeout, self._give_up, key, session, message.seq)
        self._waiting.setdefault(key, []).append((session, message.seq, timer))
        # It may have been recorded between the look and now.
        if not self._is_outstanding(*key) and await self._has_output(*key):
            await self._tell(*key)

    def _is_outstanding(self, call_id: str, index: int) -> bool:
        call = self._server.calls.get(call_id)
        return call is not None and index in call.inputs

    async def _has_output(self, call_id: str, index: int) -> bool:
        try:
            return await self._store.output(call_id, index) is not None
        except errors.FarcallError:
            return True

    def _give_up(self, key: tuple[str, int], session: Session, seq: int) -> None:
        waiting = self._waiting.get(key, [])
        left = [one for one in waiting if not (one[0] is session and one[1] == seq)]
        if len(left) < len(waiting):
            session.send(messages.Pending(seq))
        if left:
            self._waiting[key] = left
        else:
            self._waiting.pop(key, None)

    async def _answer(self, session: Session, seq: int, call_id: str, index: int, *, or_wait: bool = False) -> bool:
        """Answers from the store; False where there is no result and `or_wait`."""
        try:
            if session.app_id:
                await self._check(session, call_id)
            output = await self._store.output(call_id, index)
        except errors.FarcallError as error:
            session.send(messages.Failed(seq, failures.of(error)))
            return True
        if output is None:
            if or_wait:
                return False
            session.send(messages.Pending(seq))
            return True
        data, fds, container_id = stored.unpack(output.payload)
        session.send(
            messages.Outputs(call_id, [messages.Output(index, output.status, data, len(fds), container_id)], seq), fds
        )
        return True

    async def _check(self, session: Session, call_id: str) -> None:
        """A container may ask only for calls of its own app."""
        record = await self._store.call(call_id)
        if record.app_id != session.app_id:
            raise errors.NotFoundError(f"there is no call {call_id}")

    async def cancel(self, session: Session, message: messages.CancelCall) -> None:
        """Cancels what has no result; who waits for it is told."""
        if session.app_id:
            await self._check(session, message.call_id)
        await self._store.cancel_call(message.call_id)
        call = self._server.calls.get(message.call_id)
        if call is not None:
            call.pool.cancel(call, None, message.terminate_containers)
            self._forget_call(call)
        for call_id, index in [key for key in self._waiting if key[0] == message.call_id]:
            await self._tell(call_id, index)

    async def failed_calls(self, ref: str) -> set[str]:
        """The calls among those that `ref` names that have failed inputs."""
        return {
            call_id for call_id in self._server.failed_calls if ref in (call_id, self._server.failed_calls[call_id])
        }

    def forget(self, session: Session) -> None:
        """The session is over; it waits for nothing."""
        for key, waiting in list(self._waiting.items()):
            left = [one for one in waiting if one[0] is not session]
            if left:
                self._waiting[key] = left
            else:
                del self._waiting[key]


def encode_target(function_id: str, method: str, params: bytes) -> str:
    """What is called, as one string for the store."""
    return f"{function_id} {method} {params.hex()}"


def decode_target(text: str) -> tuple[str, str, bytes]:
    """Function id, method and parameters of `encode_target`."""
    function_id, method, params = text.split(" ")
    return function_id, method, bytes.fromhex(params)
