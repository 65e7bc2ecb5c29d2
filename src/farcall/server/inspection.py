"""Looking at what runs: apps, containers and calls, for people and programs."""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from farcall import errors
from farcall.server import stored
from farcall.server.call import Call, Input
from farcall.server.pool import Pool
from farcall.server.spawned import decode_target
from farcall.state import records
from farcall.version import __version__
from farcall.wire import messages
from farcall.wire.inspection import (
    AppDetails,
    AppListing,
    CallDetails,
    CallListing,
    ContainerDetails,
    ContainerListing,
    FunctionListing,
    GetApp,
    GetCall,
    GetContainer,
    GetOverview,
    InputListing,
    ListApps,
    ListCalls,
    ListContainers,
    Overview,
    StopContainer,
)
from farcall.worker.container import Container, End, State

if TYPE_CHECKING:
    from farcall.launcher.messages import Usage
    from farcall.server.app import App
    from farcall.server.server import Server

ENDED_KEPT = 200  # containers that can still be looked at when they are gone

Request = ListApps | GetApp | ListContainers | GetContainer | StopContainer | ListCalls | GetCall | GetOverview
ERROR_TEXT = 1000  # characters of an error in a listing

_encode = msgspec.msgpack.Encoder().encode


class Inspection:
    """Answers of one server about itself."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ended: OrderedDict[str, ContainerDetails] = OrderedDict()

    async def answer(self, message: Request) -> bytes | None:
        """The body of the answer to a client's request. Raises NotFoundError and ConflictError."""
        match message:
            case ListApps(ended=ended):
                return _encode(await self._apps(ended))
            case GetApp(app_id=app_id):
                return _encode(await self._app(app_id))
            case ListContainers():
                return _encode(await self._containers(self._server.workers.containers))
            case GetContainer(container_id=container_id):
                return _encode(await self._container(container_id))
            case StopContainer():
                await self._stop(message)
                return None
            case ListCalls():
                return _encode(await self._calls(message))
            case GetCall():
                return _encode(await self._call(message))
            case GetOverview():
                return _encode(await self._overview())

    # --- apps

    async def _apps(self, ended: bool) -> list[AppListing]:
        listings = [self._app_listing(record) for record in reversed(await self._server.store.apps())]
        return [listing for listing in listings if ended or listing.state != "stopped"]

    def _app_listing(self, record: records.App) -> AppListing:
        app = self._server.apps.get(record.app_id)
        if app is None:
            return AppListing(record.app_id, record.name, "stopped", record.created_at, record.stopped_at)
        functions = [self._function(app, function_id) for function_id in app.functions]
        return AppListing(
            record.app_id,
            record.name,
            app.state,
            record.created_at,
            record.stopped_at,
            len(functions),
            app.containers,
            sum(function.running for function in functions),
            sum(function.waiting for function in functions),
            app.inputs_done,
            app.inputs_failed,
        )

    def _function(self, app: App, function_id: str) -> FunctionListing:
        spec = app.functions[function_id]
        listing = FunctionListing(function_id, spec.name, spec.is_class)
        for pool in app.pools.values():
            if pool.function.function_id != function_id:
                continue
            listing.containers += len(pool.containers)
            listing.starting += sum(one.state in (State.STARTING, State.LOADING) for one in pool.containers)
            running = sum(_running(one, self._server.now()) for one in pool.containers)
            listing.running += running
            listing.waiting += pool.backlog + sum(one.holds for one in pool.containers) - running
            listing.mean_seconds = pool.mean_seconds if listing.mean_seconds is None else listing.mean_seconds
        return listing

    async def _overview(self) -> Overview:
        listings = {one.container_id: one for one in await self._containers(self._server.workers.containers)}
        apps: list[AppDetails] = []
        for record in await self._server.store.apps():
            app = self._server.apps.get(record.app_id)
            if app is not None:
                functions = [self._function(app, function_id) for function_id in app.functions]
                mine = [one for one in listings.values() if one.app_id == app.app_id]
                apps.append(AppDetails(self._app_listing(record), functions, mine))
        total, available = _memory()
        workers = self._server.workers.states()
        return Overview(__version__, self._server.uptime, os.cpu_count() or 1, total, available, apps, workers)

    async def _app(self, app_id: str) -> AppDetails:
        record = await self._server.store.app(app_id)
        app = self._server.apps.get(app_id)
        if app is None:
            return AppDetails(self._app_listing(record), [], [])
        functions = [self._function(app, function_id) for function_id in app.functions]
        containers = await self._containers(one for pool in app.pools.values() for one in pool.containers)
        return AppDetails(self._app_listing(record), functions, containers)

    # --- containers

    async def _containers(self, containers: Iterable[Container]) -> list[ContainerListing]:
        found = list(containers)
        usages = await self._server.workers.measure() if found else {}
        return [self._container_listing(one, usages.get(one.container_id)) for one in found]

    def _container_listing(self, container: Container, usage: Usage | None = None) -> ContainerListing:
        now = self._server.now()
        app = self._server.apps.get(container.app_id)
        running = _running(container, now)
        return ContainerListing(
            container.container_id,
            container.app_id,
            "" if app is None else app.name,
            container.function.name,
            container.state.value,
            self._epoch(container.created_at),
            running,
            container.holds - running,
            container.answers,
            None if usage is None else usage.cpu,
            None if usage is None else usage.memory,
            None if usage is None else usage.processes,
            container.where,
        )

    def _details(self, container: Container, listing: ContainerListing) -> ContainerDetails:
        function = container.function
        inputs = [self._held(token, seconds, container) for token, seconds in container.held(self._server.now())]
        return ContainerDetails(
            listing,
            container.timeline,
            container.notes,
            inputs,
            function.cpu,
            function.memory,
            "" if function.interpreter is None or function.image_id else function.interpreter.executable,
            function.image_id,
            function.runtime,
        )

    def _held(self, one: Input, seconds: float | None, container: Container) -> InputListing:
        state = "queued" if seconds is None else "running"
        function = _name_of(one.call)
        return InputListing(
            one.call.call_id, one.index, state, function, one.attempts + 1, container.container_id, seconds
        )

    async def _container(self, container_id: str) -> ContainerDetails:
        for container in self._server.workers.containers:
            if container.container_id == container_id:
                (listing,) = await self._containers([container])
                return self._details(container, listing)
        if container_id in self._ended:
            return self._ended[container_id]
        raise errors.NotFoundError(
            f"there is no container {container_id}, and it is none of the last {ENDED_KEPT} that ended; "
            "`farcall container list` shows those that run"
        )

    def gone(self, container: Container, end: End) -> None:
        """A container is gone; it is kept for those who ask why."""
        details = self._details(container, self._container_listing(container))
        details.ended = f"{end.reason}; {end.describe()}" if end.reason else end.describe()
        details.ended_at = time.time()
        self._ended[container.container_id] = details
        if len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)

    async def _stop(self, message: StopContainer) -> None:
        container_id = message.container_id
        pool, container = self._pool_of(container_id)
        if message.graceful:
            pool.drain(container)
        else:
            container.kill("stopped by hand")
        while container.state is not State.GONE:  # noqa: ASYNC110 - a container tells its pool, and nobody else
            await asyncio.sleep(0.02)

    def _pool_of(self, container_id: str) -> tuple[Pool, Container]:
        for app in self._server.apps.values():
            for pool in app.pools.values():
                for container in pool.containers:
                    if container.container_id == container_id:
                        return pool, container
        ended = " any more" if container_id in self._ended else ""
        raise errors.NotFoundError(f"no container {container_id} runs{ended}; see `farcall container list`")

    # --- calls

    async def _calls(self, message: ListCalls) -> list[CallListing]:
        limit = max(1, min(message.limit, 1000))
        found = {
            call.call_id: self._call_listing(call)
            for call in self._server.calls.values()
            if call.kind != "spawned" and call.inputs and message.app_id in ("", call.app_id)
        }
        kept = await self._server.store.newest_calls(message.app_id or None, limit, unfinished=message.unfinished)
        names = {record.app_id: record.name for record in await self._server.store.apps()}
        for record, failed in kept:
            found[record.call_id] = _stored_listing(record, failed, names.get(record.app_id, ""))
        return sorted(found.values(), key=lambda listing: listing.created_at, reverse=True)[:limit]

    def _call_listing(self, call: Call) -> CallListing:
        """A call in memory: what is finished of it is not counted any more."""
        created_at = self._epoch(call.created_at)
        return CallListing(
            call.call_id,
            call.kind,
            call.app_id,
            call.pool.app.name,
            _name_of(call),
            "pending",
            created_at,
            inputs=len(call.inputs),
        )

    async def _call(self, message: GetCall) -> CallDetails:
        live = self._server.calls.get(message.call_id)
        now = self._server.now()
        running: dict[int, tuple[Input, float | None]] = {}
        if live is not None:
            for container in live.pool.containers:
                for token, seconds in container.held(now):
                    if token.call is live:
                        running[token.index] = token, seconds
            if live.kind != "spawned":
                inputs = [self._live_input(one, running) for one in sorted(live.inputs.values(), key=_index)]
                page = [one for one in inputs if one.index >= message.first][: message.limit]
                return CallDetails(self._call_listing(live), page)
        record, failed = await self._server.store.inspect_call(message.call_id)
        name = next((app.name for app in await self._server.store.apps() if app.app_id == record.app_id), "")
        rows = await self._server.store.inspect_inputs(message.call_id, message.first, message.limit)
        inputs: list[InputListing] = []
        for row in rows:
            one = None if live is None else live.inputs.get(row.index)
            if row.output is None and one is not None:
                inputs.append(self._live_input(one, running))
            else:
                inputs.append(_stored_input(record, row))
        return CallDetails(_stored_listing(record, failed, name), inputs)

    def _live_input(self, one: Input, running: dict[int, tuple[Input, float | None]]) -> InputListing:
        if one.index in running and one.container is not None:
            return self._held(one, running[one.index][1], one.container)
        return InputListing(one.call.call_id, one.index, "waiting", _name_of(one.call), one.attempts + 1)

    def _epoch(self, at: float) -> float:
        """A time of the loop's clock, in seconds since the epoch."""
        return time.time() - (self._server.now() - at)


def _memory() -> tuple[int, int]:
    """The machine's memory and how much of it can be had, in bytes."""
    found: dict[str, int] = {}
    with open("/proc/meminfo") as file:
        for line in file:
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) * 1024
    return found["MemTotal"], found.get("MemAvailable", found["MemFree"])


def _running(container: Container, now: float) -> int:
    """How many inputs it is working on."""
    return sum(seconds is not None for _, seconds in container.held(now))


def _name_of(call: Call) -> str:
    return f"{call.pool.function.name}.{call.method.name}" if call.method.name else call.pool.function.name


def _index(one: Input) -> int:
    return one.index


def _stored_listing(record: records.Call, failed: int | None, app: str) -> CallListing:
    _, method, _ = decode_target(record.function_id)
    state = "failed" if record.status == "done" and failed == record.num_inputs else record.status
    return CallListing(
        record.call_id,
        "spawned",
        record.app_id,
        app,
        f"{record.function_name}.{method}" if method else record.function_name,
        state,
        record.created_at,
        record.finished_at if record.status != "pending" else None,
        record.num_inputs,
        record.num_finished,
        failed,
    )


def _stored_input(record: records.Call, row: records.InspectedInput) -> InputListing:
    listing = InputListing(record.call_id, row.index, row.status, attempts=row.attempts + 1)
    if row.status in ("pending", "running"):
        listing.state = "waiting"
    if row.output is not None:
        listing.finished_at = row.finished_at
        if row.output in (messages.EXCEPTION, messages.PLATFORM_ERROR):
            listing.state = "failed"
    if row.failure is not None:
        failure = stored.failure_of(row.failure)
        listing.error = f"{failure.code}: {failure.message}"[:ERROR_TEXT]
        listing.container_id = failure.container_id
    return listing
