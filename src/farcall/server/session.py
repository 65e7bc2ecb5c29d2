"""A session: one connection, of a client's program or of a container, and what it may ask for."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from farcall import errors
from farcall.server import failures, stored
from farcall.server.app import App
from farcall.server.call import Call, Input, check_size
from farcall.server.flow import Flow
from farcall.server.logs import UNSENT_LIMIT, Subscription, batches
from farcall.spec.function import FunctionSpec
from farcall.wire import builds, messages
from farcall.wire.content import AddContent, OfferTree, ReleaseContent
from farcall.wire.descriptors import close_all
from farcall.wire.execs import ExecCommand, ExecInput, ExecResize, ExecSignal
from farcall.wire.inspection import (
    GetApp,
    GetCall,
    GetContainer,
    GetOverview,
    ListApps,
    ListCalls,
    ListContainers,
    StopContainer,
)
from farcall.wire.memory import INLINE_LIMIT, from_memory, to_memory
from farcall.wire.scaling import PoolStatistics, PoolStats, UpdateAutoscaler
from farcall.wire.secrets import DeleteSecret, ListSecrets, PutSecret, ReadSecret
from farcall.wire.testing import AdvanceClock, GetTestReport, InjectFault
from farcall.wire.transport import UNREAD_BYTES, Transport
from farcall.wire.volumes import (
    AddVolumeFiles,
    CommitVolume,
    CreateVolume,
    DeleteVolume,
    GetVolume,
    ListVolumes,
    MountedVolume,
    ReadVolume,
    RenameVolume,
)
from farcall.wire.workers import (
    CreateWorkerToken,
    DrainWorker,
    ListWorkers,
    ListWorkerTokens,
    RemoveWorker,
    RevokeWorkerToken,
)

if TYPE_CHECKING:
    from farcall.server.server import Server

_encode = msgspec.msgpack.Encoder().encode
_NO_BODY = b"\xc0"

REFUSALS = 100  # frames that are no messages, after which a peer is given up


class Session:
    """Serves one peer. `app_id` and `container_id` are set for a container: it may touch only what belongs to its own
    app."""

    def __init__(self, server: Server, transport: Transport, app_id: str = "", container_id: str = "") -> None:
        self.server = server
        self.app_id = app_id
        self.container_id = container_id
        self.pid = 0
        self.created_at = server.now()
        self.greeted = False  # it has said hello
        self.incompatible = ""  # why nothing can be done for a peer that speaks another protocol
        self.refused = 0  # messages
        self._transport = transport
        self.mounted: tuple[MountedVolume, ...] = ()  # of a container: its volumes, as it started
        self._calls: dict[str, Call] = {}

    @property
    def is_open(self) -> bool:
        """Whether the peer is there."""
        return not self._transport.closed

    @property
    def buffered(self) -> int:
        """Bytes sent that the peer has not taken."""
        return self._transport.buffered

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Sends to the peer; takes over the descriptors."""
        self._transport.send(message, fds)
        if self.container_id and self._transport.buffered > UNREAD_BYTES:
            self.end(f"it asks and does not read: {UNREAD_BYTES // 2**20} MiB wait for it")

    def handle(self, message: Any, fds: tuple[int, ...]) -> None:
        """One message of the peer. An error it causes is its answer, or the output of the inputs it carried."""
        try:
            self._handle(message, fds)
        except errors.FarcallError as error:
            self._refuse(message, error)
        else:
            return
        self.refused += 1
        if self.refused > REFUSALS and isinstance(message, errors.ProtocolError):
            self.end(f"it sent {self.refused} messages that are none")

    def _refuse(self, message: Any, error: errors.FarcallError) -> None:
        if isinstance(message, messages.Submit):
            data = failures.encode(error, call_id=message.call_id)
            self.send(
                messages.Outputs(
                    message.call_id,
                    [messages.Output(one.index, messages.PLATFORM_ERROR, data) for one in message.inputs],
                )
            )
        else:
            self.send(messages.Failed(getattr(message, "seq", 0), failures.of(error)))

    def _handle(self, message: Any, fds: tuple[int, ...]) -> None:
        if self.incompatible and not isinstance(message, messages.StopServer | messages.Hello):
            close_all(fds)
            raise errors.VersionError(self.incompatible)
        match message:
            case messages.Submit():
                self._submit(message, fds)
                return
            case messages.Spawn():
                self._answer_later(message, self._spawn(message, fds))
                return
            case messages.CreateApp():
                self._answer_later(message, self._create_app(message, fds))
                return
            case builds.BuildImage():
                self._answer_later(message, self._build_image(message, fds))
                return
            case AddVolumeFiles() | CommitVolume():
                self._answer_later(message, self.server.volumes.answer(self, message, fds, self._volumes()))
                return
            case OfferTree() | AddContent() | ReleaseContent():
                try:
                    self._only_clients()
                except errors.FarcallError:
                    close_all(fds)
                    raise
                self._answer_later(message, self.server.uploads.answer(self, message, fds))
                return
            case _:
                close_all(fds)  # no other message has any
        match message:
            case messages.Credit():
                call = self._calls.get(message.call_id)
                if call is not None:
                    call.pool.credit(call, message.index, message.items)
            case messages.Taken():
                call = self._calls.get(message.call_id)
                if call is not None:
                    call.pool.taken(call, message.bytes, message.wanted)
            case messages.AddVariant():
                self._app_of(message.base_id).add_variant(message, of_container=bool(self.app_id))
            case messages.CancelCall(seq=seq):
                self._cancel(message, seq)
            case messages.GetOutput():
                self.server.spawned.get(self, message)
            case messages.StopApp():
                self._only_clients()
                self._answer_later(message, self._stop_app(message))
            case messages.Lookup(seq=seq):
                self.send(messages.Done(seq, _encode(_public(self._app_of(message.function_id), message.function_id))))
            case messages.Subscribe(seq=seq):
                self._only_clients()
                self.server.subscribe_stats(message.app_id, self)
                app_id = message.app_id
                self.server.logs.subscribe(Subscription(self, 0, lambda entry: entry.app_id == app_id))
                self.send(messages.Done(seq))
            case builds.CancelBuild(seq=seq):
                self._only_clients()
                self.server.images.cancel(self, message.build)
                self.send(messages.Done(seq))
            case builds.PublishImage(seq=seq):
                self._only_clients()
                self.server.images.publish(message)
                self.send(messages.Done(seq))
            case messages.ReadLogs():
                self._only_clients()
                self._answer_later(message, self._read_logs(message))
            case messages.ServerStatus(seq=seq):
                self._only_clients()
                self.send(messages.Done(seq, _encode(self.server.status())))
            case messages.StopServer():
                self._only_clients()
                self._stop_server(message)
            case PutSecret() | DeleteSecret() | ListSecrets() | ReadSecret():
                self._only_clients()
                self._answer_later(message, self.server.secrets.answer(message))
            case CreateVolume() | ListVolumes() | DeleteVolume() | RenameVolume() | GetVolume() | ReadVolume():
                self._answer_later(message, self.server.volumes.answer(self, message, (), self._volumes()))
            case UpdateAutoscaler():
                self._answer_later(message, self._update_autoscaler(message))
            case PoolStats(seq=seq, function_id=function_id, params=params):
                pool = self._app_of(function_id).pools.get((function_id, params))
                self.send(messages.Done(seq, _encode(PoolStatistics() if pool is None else pool.scaler.statistics())))
            case (
                ListApps()
                | GetApp()
                | ListContainers()
                | GetContainer()
                | StopContainer()
                | ListCalls()
                | GetCall()
                | GetOverview()
            ):
                self._only_clients()
                self._answer_later(message, self.server.inspection.answer(message))
            case AdvanceClock(seq=seq) | InjectFault(seq=seq) | GetTestReport(seq=seq):
                self._only_clients()
                self.send(messages.Done(seq, self.server.testing.answer(message) or _NO_BODY))
            case ExecCommand():
                self._only_clients()
                self._answer_later(message, self.server.execs.run(self, message))
            case (
                CreateWorkerToken()
                | ListWorkerTokens()
                | RevokeWorkerToken()
                | ListWorkers()
                | DrainWorker()
                | RemoveWorker()
            ):
                self._only_clients()
                self._answer_later(message, self.server.workers.answer(message))
            case ExecInput() | ExecResize() | ExecSignal():
                self._only_clients()
                self.server.execs.handle(self, message)
            case errors.ProtocolError():
                raise message
            case _:
                raise errors.ProtocolError(f"a {type(message).__name__} has no place here")

    def _volumes(self) -> frozenset[str] | None:
        """The volumes whose files the peer may use, None for all of them."""
        if not self.app_id:
            return None
        functions = self.server.apps[self.app_id].functions.values() if self.app_id in self.server.apps else ()
        return frozenset(volume.name for function in functions for volume in function.volumes)

    def _only_clients(self) -> None:
        if self.app_id:
            raise errors.PermissionDeniedError("code in a container cannot manage apps, secrets or the server")

    def _answer_later(self, message: Any, work: Any) -> None:
        """Runs `work`, which returns the answer's body, and answers."""

        async def run() -> None:
            try:
                body = await work
            except errors.FarcallError as error:
                self._refuse(message, error)
            except Exception as error:
                self.server.log.exception("%s failed", type(message).__name__)
                self._refuse(
                    message, errors.InternalError(f"{type(message).__name__}: {error!r}; see `farcall server logs`")
                )
            else:
                if body is not None and len(body) > INLINE_LIMIT:
                    self.send(messages.Done(message.seq, b"", 1), (to_memory(body),))
                else:
                    self.send(messages.Done(message.seq, _NO_BODY if body is None else body))

        self.server.spawn(run())

    # --- calls

    def _app_of(self, function_id: str) -> App:
        app = self.server.functions.get(function_id)
        if app is None or (self.app_id and app.app_id != self.app_id):
            raise errors.NotFoundError(
                f"there is no function {function_id}: its app has stopped, or the handle belongs to another app"
            )
        if app.stopping:
            raise errors.ConflictError(f"app {app.name} ({app.app_id}) is stopping and takes no more calls")
        return app

    def _submit(self, message: messages.Submit, fds: tuple[int, ...]) -> None:
        try:
            call = self._call_of(message)
            known = set(call.inputs)
            for one in message.inputs:
                if one.index in known:
                    raise errors.ConflictError(f"input {one.index} of {message.call_id} was submitted already")
                check_size(one)
                known.add(one.index)
        except errors.FarcallError:
            close_all(fds)
            raise
        inputs: list[Input] = []
        position = size = 0
        now = self.server.now()
        holding = call.pool.app.holding
        for one in message.inputs:
            mine = fds[position : position + one.descriptors] if one.descriptors else ()
            position += one.descriptors
            new = Input(call, one.index, one.data, mine, now)
            if mine:
                new.file = holding.add_file(mine[0])
            size += len(one.data)
            call.inputs[one.index] = new
            inputs.append(new)
        if position < len(fds):
            close_all(fds[position:])
        holding.add(len(inputs), size)
        if holding.is_over or self.server.overload.whole.is_over:
            inputs = self.server.overload.relieve(call.pool.app, inputs)
        call.pool.submit(inputs)

    def _call_of(self, message: messages.Submit) -> Call:
        call = self._calls.get(message.call_id)
        if call is None:
            if message.call_id in self.server.calls:
                raise errors.ConflictError(f"there is another call {message.call_id}")
            pool = self._app_of(message.function_id).pool(message.function_id, message.params)
            method = pool.function.method(message.method)
            if method is None:
                raise errors.NotFoundError(f"{pool.function.name} has no method {message.method!r}")
            call = Call(message.call_id, pool, method, message.kind, self, self.server.now())
            if message.window:
                call.flow = Flow(message.window)
            self._calls[message.call_id] = self.server.calls[message.call_id] = call
        elif call.pool.app.stopping:
            raise errors.ConflictError(f"app {call.pool.app.name} is stopping and takes no more calls")
        return call

    def call_done(self, call: Call) -> None:
        """A call has no inputs left; more of a map may still come."""
        if call.kind != "map":
            self._calls.pop(call.call_id, None)
            self.server.calls.pop(call.call_id, None)

    def _cancel(self, message: messages.CancelCall, seq: int) -> None:
        call = self._calls.get(message.call_id)
        if call is not None:
            call.pool.cancel(call, message.indices, message.terminate_containers)
            if message.indices is None:
                self._calls.pop(message.call_id, None)
                self.server.calls.pop(message.call_id, None)
            if seq:
                self.send(messages.Done(seq))
            return
        others = self.server.calls.get(message.call_id)
        if others is not None and others.session is not None and not self.app_id:
            self.server.end_call(others, f"call {message.call_id} was cancelled")
            self.send(messages.Done(seq))
        elif seq:
            self._answer_later(message, self.server.spawned.cancel(self, message))

    async def _spawn(self, message: messages.Spawn, fds: tuple[int, ...]) -> None:
        try:
            pool = self._app_of(message.function_id).pool(message.function_id, message.params)
            method = pool.function.method(message.method)
            if method is None:
                raise errors.NotFoundError(f"{pool.function.name} has no method {message.method!r}")
            inputs = stored.pack_inputs(message.inputs, fds)
        finally:
            close_all(fds)
        await self.server.spawned.add(pool, method, message, inputs)
        if pool.function.variant_of:
            async with pool.app.recording:
                pass  # the next server must know the variant, too: its definition was begun before this call came

    async def _update_autoscaler(self, message: UpdateAutoscaler) -> bytes:
        app = self._app_of(message.function_id)
        if not message.changes:
            return _encode(app.scaling(message.function_id, message.params))
        scaling = app.update_scaling(message.function_id, message.params, message.changes)
        await self.server.definitions.keep(app)
        return _encode(scaling)

    # --- apps

    async def _create_app(self, message: messages.CreateApp, fds: tuple[int, ...]) -> None:
        position = 0
        functions: list[FunctionSpec] = []
        try:
            self._only_clients()
            for function in message.app.functions:
                if function.source.pickled == b"":
                    if position >= len(fds):
                        raise errors.ProtocolError(f"the code of {function.name} did not come along")
                    source = msgspec.structs.replace(function.source, pickled=from_memory(fds[position]))
                    function = msgspec.structs.replace(function, source=source)
                    position += 1
                functions.append(function)
        finally:
            close_all(fds)
        new = [one for one in functions if one.function_id not in self.server.functions]
        await self.server.secrets.check(new)
        await self.server.volumes.check(new)
        functions = [await self.server.on_this_machine(function) for function in functions]
        await self.server.create_app(msgspec.structs.replace(message.app, functions=tuple(functions)), self)

    async def _build_image(self, message: builds.BuildImage, fds: tuple[int, ...]) -> bytes:
        try:
            self._only_clients()
        except errors.FarcallError:
            close_all(fds)
            raise
        return await self.server.images.build(self, message, fds)

    async def _stop_app(self, message: messages.StopApp) -> bytes:
        return _encode(await self.server.stop_app(message.app_id, message.grace))

    def _stop_server(self, message: messages.StopServer) -> None:
        busy = self.server.busy_reason(besides=self)
        if busy and not message.force:
            raise errors.ConflictError(f"the server is busy: {busy}")
        self.send(messages.Done(message.seq))
        self.server.stop()

    # --- logs

    async def _read_logs(self, message: messages.ReadLogs) -> None:
        kind = message.ref.partition("-")[0]
        if kind not in ("ap", "fc", "ta"):
            message = msgspec.structs.replace(message, ref=await self.server.app_id_of(message.ref))
        failed = await self.server.spawned.failed_calls(message.ref) if message.failed else None
        pattern = _pattern(message.grep)

        def matches(entry: messages.LogEntry) -> bool:
            return message.ref in (entry.app_id, entry.call_id, entry.container_id) and (
                pattern is None or pattern.search(entry.text) is not None
            )

        subscription: Subscription | None = None
        if message.follow:
            subscription = Subscription(self, message.seq, matches)
            subscription.hold()  # what comes while the kept ones are read is shown after them
            self.server.logs.subscribe(subscription)

        def read() -> Iterator[list[messages.LogEntry]]:
            return batches(
                self.server.logs.store.read(
                    message.ref, since=message.since, grep=message.grep or None, failed_calls=failed, tail=message.tail
                )
            )

        run = self.server.loop.run_in_executor
        found = await run(None, read)
        last = 0.0
        while batch := await run(None, next, found, None):
            self.send(messages.LogBatch(message.seq, batch))
            last = batch[-1].time
            while not self._transport.closed:
                if self.buffered <= UNSENT_LIMIT:
                    break
                await asyncio.sleep(0.01)
            else:
                return
        if subscription is not None:
            subscription.release(last)
            await self.server.over(message.ref, self)
            self.server.logs.unsubscribe(subscription)

    # --- the end

    def end(self, why: str) -> None:
        """Ends a peer that does not keep to the protocol."""
        self.server.log.warning("the connection of pid %d %s is ended: %s", self.pid, self.container_id, why)
        self._transport.close(after_flush=True)

    def disconnect(self) -> None:
        """Ends the connection."""
        self._transport.close(after_flush=True)

    def close(self) -> None:
        """The peer is gone: what it waited for is cancelled, and its ephemeral apps stop."""
        for call in list(self._calls.values()):
            call.pool.cancel(call, None, False)
            self.server.calls.pop(call.call_id, None)
        self._calls.clear()
        self.server.images.session_closed(self)
        self.server.volumes.forget(self)
        self.server.uploads.forget(self)
        self.server.session_closed(self)


def _public(app: App, function_id: str) -> FunctionSpec:
    """What a caller may know of a function: not its environment, and not its code, which may be long."""
    function = app.functions[function_id]
    source = msgspec.structs.replace(function.source, pickled=None)
    return msgspec.structs.replace(function.without_secrets(), source=source)


def _pattern(grep: str) -> re.Pattern[str] | None:
    try:
        return re.compile(grep) if grep else None
    except re.error as error:
        raise errors.InvalidError(f"{grep!r} is not a regular expression: {error}") from None


def process_exists(pid: int) -> bool:
    """Whether a process of that id is there, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
