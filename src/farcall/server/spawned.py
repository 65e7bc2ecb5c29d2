"""Spawned calls: durable from the moment they are acknowledged, until their results have been kept long enough."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from farcall import errors
from farcall.server import failures, stored
from farcall.server.backlog import Backlog
from farcall.server.call import Call, Input
from farcall.server.pool import Pool
from farcall.spec.function import MethodSpec
from farcall.state import records
from farcall.wire import messages

if TYPE_CHECKING:
    from farcall.server.server import Server
    from farcall.server.session import Session

LOAD_AGAIN_SECONDS = 1.0  # after inputs could not be read


class Spawned:
    """The calls whose results go to the store, and who waits for them."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._store = server.store
        self._backlogs: dict[str, dict[str, Backlog]] = {}  # by app and target
        self._resumed = asyncio.Event()
        self._waiting: dict[tuple[str, int], list[tuple[Session, int, asyncio.TimerHandle | None]]] = {}

    def pending(self, app_id: str) -> int:
        """The app's inputs without a recorded result."""
        if not self._resumed.is_set():
            return 1  # nobody knows yet: an app that may have some is not over
        return sum(backlog.pending for backlog in self._backlogs.get(app_id, {}).values())

    def stored(self, pool: Pool) -> int:
        """Inputs of a pool that wait on disk."""
        return sum(one.stored for one in self._backlogs.get(pool.app.app_id, {}).values() if one.pool is pool)

    async def add(self, pool: Pool, method: MethodSpec, message: messages.Spawn, payloads: list[bytes]) -> None:
        """Records the call, or more inputs of it; they run when their turn comes."""
        first = message.inputs[0].index if message.inputs else 0
        if not message.inputs or any(one.index != first + place for place, one in enumerate(message.inputs)):
            raise errors.ProtocolError("a Spawn has inputs whose indexes follow each other")
        await self._resumed.wait()
        app = pool.app
        # What a restarted server must know beyond the store's own columns goes with the function's name.
        target = encode_target(pool.function.function_id, message.method, message.params)
        added: Sequence[int] = range(len(payloads))
        record = records.Call(
            call_id=message.call_id, app_id=app.app_id, function_id=target, function_name=pool.function.name
        )
        if first == 0:
            record = await self._store.add_call(record, payloads)
        else:
            record, added = await self._store.add_inputs(record, payloads, first_index=first)
        if app.stopping:
            return
        backlog = self._backlog(pool, method, target)
        if backlog.takes(len(added)):
            self._run(
                backlog, [records.LoadedInput(message.call_id, index, payloads[index - first]) for index in added]
            )
        else:
            for index in added:
                backlog.append(records.Span(record.number, index, index + 1))
            self._refill(backlog)

    def _backlog(self, pool: Pool, method: MethodSpec, target: str) -> Backlog:
        backlogs = self._backlogs.setdefault(pool.app.app_id, {})
        backlog = backlogs.get(target)
        if backlog is None:
            backlog = backlogs[target] = Backlog(pool, method)
        return backlog

    def _run(self, backlog: Backlog, loaded: list[records.LoadedInput]) -> None:
        now = self._server.now()
        new: list[Input] = []
        for one in loaded:
            call = self._server.calls.get(one.call_id)
            if call is None or call.backlog is not backlog:
                call = Call(one.call_id, backlog.pool, backlog.method, "spawned", None, now)
                call.backlog = backlog
                self._server.calls[one.call_id] = call
            data, fds, _ = stored.unpack(one.payload)
            call.inputs[one.index] = made = Input(call, one.index, data, fds, now)
            made.attempts, made.losses = one.attempts, one.losses
            backlog.hold(one.call_id, one.index, len(one.payload))
            new.append(made)
        backlog.pool.submit(new)

    def _refill(self, backlog: Backlog) -> None:
        if backlog.stored and not backlog.loading and backlog.room > 0 and not backlog.pool.app.stopping:
            backlog.loading = True
            self._server.spawn(self._load(backlog))

    async def _load(self, backlog: Backlog) -> None:
        """Takes what is due from disk into memory."""
        try:
            while backlog.stored and (room := backlog.room) > 0:
                looked_at, loaded = await self._store.load(backlog.oldest(), room)
                if backlog.pool.app.stopping:
                    return
                for count in looked_at:
                    backlog.take(count)
                self._run(backlog, loaded)
        except errors.FarcallError as error:
            self._server.log.error("spawned calls of %s wait: %s", backlog.pool.function.name, error)
            self._server.loop.call_later(LOAD_AGAIN_SECONDS, self._refill, backlog)
        finally:
            backlog.loading = False

    async def resume(self) -> None:
        """After a restart: runs what was acknowledged and has no result."""
        refused: set[str] = set()
        try:
            async for found in self._store.pending_spans():
                app = self._server.apps.get(found.app_id)
                if app is None or found.function_id in refused:
                    continue
                function_id, method_name, params = decode_target(found.function_id)
                try:
                    pool = app.pool(function_id, params)
                    method = pool.function.method(method_name)
                    if method is None:
                        raise errors.NotFoundError(f"{pool.function.name} has no method {method_name!r}")
                except errors.FarcallError as error:
                    refused.add(found.function_id)
                    self._server.log.error("calls of app %s cannot be resumed: %s", app.app_id, error)
                    continue
                self._backlog(pool, method, found.function_id).append(found.span)
        finally:
            self._resumed.set()
        for backlogs in self._backlogs.values():
            for backlog in backlogs.values():
                self._refill(backlog)
        await self.cancel_app(None)

    def deliver(self, call: Call, outputs: list[messages.Output], fds: list[int]) -> None:
        """Records results, then tells who waits for them."""
        packed: list[tuple[int, int, bytes]] = []
        position = 0
        for output in outputs:
            mine = tuple(fds[position : position + output.descriptors])
            position += output.descriptors
            packed.append(_pack(call, output, mine))
        self._forget_if_over(call)
        self._server.spawn(self._record(call, packed))

    async def _record(self, call: Call, outputs: list[tuple[int, int, bytes]]) -> None:
        recorded = frozenset[int]()
        while True:
            try:
                recorded = frozenset(await self._store.record_outputs(call.call_id, outputs))
                break
            except errors.ResourceExhaustedError as error:
                if len(outputs) > 1:
                    # One that is too large for what is left must not hold up the others.
                    for one in outputs:
                        self._server.spawn(self._record(call, [one]))
                    return
                # The result is there and must not be lost for want of room: it is kept until there is some.
                self._server.log.error("the result of %s cannot be recorded yet: %s", call.call_id, error)
                await asyncio.sleep(1.0)
            except errors.FarcallError as error:
                self._server.log.error("the result of %s was not recorded: %s", call.call_id, error)
                break
        backlog = call.backlog
        assert backlog is not None, "a spawned call has one"
        for index, _, _ in outputs:
            backlog.release(call.call_id, index)
        self._refill(backlog)
        known = {index: (status, payload) for index, status, payload in outputs if index in recorded}
        for index, _, _ in outputs:
            await self._tell(call.call_id, index, known.get(index))

    def _forget_if_over(self, call: Call) -> None:
        if not call.inputs and self._server.calls.get(call.call_id) is call:
            del self._server.calls[call.call_id]

    def retried(self, one: Input) -> None:
        """An attempt was spent: after a restart it still is."""
        self._server.spawn(self._keep_attempt(one))

    async def _keep_attempt(self, one: Input) -> None:
        try:
            await self._store.bump_attempt(one.call.call_id, one.index)
        except (errors.ConflictError, errors.OutputExpiredError, errors.NotFoundError):
            pass  # it was cancelled meanwhile
        except errors.FarcallError as error:
            self._server.log.error("an attempt of %s was not recorded: %s", one.call.call_id, error)

    async def _tell(self, call_id: str, index: int, recorded: tuple[int, bytes] | None = None) -> None:
        """Answers who waits for a result; with status and payload where they have just been recorded."""
        for session, seq, timer in self._waiting.pop((call_id, index), []):
            if timer is not None:
                timer.cancel()
            if recorded is not None and not session.app_id:
                _send_output(session, seq, call_id, index, *recorded)
            else:
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
        _send_output(session, seq, call_id, index, output.status, output.payload)
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
        await self._drop(message.call_id, message.terminate_containers)

    async def _drop(self, call_id: str, terminate_containers: bool = False) -> None:
        """A call has been cancelled in the store."""
        call = self._server.calls.get(call_id)
        if call is not None and call.backlog is not None:
            for index in call.inputs:
                call.backlog.release(call_id, index)
            call.pool.cancel(call, None, terminate_containers)
            self._forget_if_over(call)
            self._refill(call.backlog)
        for key in [key for key in self._waiting if key[0] == call_id]:
            await self._tell(*key)

    async def cancel_app(self, app_id: str | None) -> None:
        """Cancels all calls of an app that is over. Without one: what an earlier server did not get to cancel."""
        async for call_id in self._store.cancel_calls(app_id):
            await self._drop(call_id)

    def forget_app(self, app_id: str) -> None:
        """Nothing of the app runs any more."""
        self._backlogs.pop(app_id, None)

    async def is_pending(self, call_id: str) -> bool:
        """Whether a call has inputs without a result."""
        try:
            return (await self._store.call(call_id)).status == "pending"
        except errors.FarcallError:
            return False

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


def _send_output(session: Session, seq: int, call_id: str, index: int, status: int, payload: bytes) -> None:
    """Answers a GetOutput."""
    data, fds, container_id = stored.unpack(payload)
    session.send(messages.Outputs(call_id, [messages.Output(index, status, data, len(fds), container_id)], seq), fds)


def _pack(call: Call, output: messages.Output, fds: tuple[int, ...]) -> tuple[int, int, bytes]:
    """Index, status and payload of an output, as the store keeps it; closes the descriptors."""
    try:
        return output.index, output.status, stored.pack(output.data, fds, output.container_id)
    except errors.FarcallError as error:
        failure = failures.encode(error, call_id=call.call_id, container_id=output.container_id)
        return output.index, messages.PLATFORM_ERROR, stored.pack(failure, (), output.container_id)


def encode_target(function_id: str, method: str, params: bytes) -> str:
    """What is called, as one string for the store."""
    return f"{function_id} {method} {params.hex()}"


def decode_target(text: str) -> tuple[str, str, bytes]:
    """Function id, method and parameters of `encode_target`."""
    function_id, method, params = text.split(" ")
    return function_id, method, bytes.fromhex(params)
