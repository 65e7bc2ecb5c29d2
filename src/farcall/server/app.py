"""An app that runs: its functions, and the pools of their containers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from farcall import errors
from farcall.server.pool import Pool
from farcall.spec.function import MAX_HELD, AppSpec, FunctionSpec, PoolScaling
from farcall.spec.scaling import Scaling

if TYPE_CHECKING:
    from farcall.server.server import Server
    from farcall.server.session import Session
    from farcall.wire.messages import AddVariant

FUNCTIONS = 10_000  # of an app, with their variants; more are made by a program that errs


class App:
    """One app. An ephemeral one belongs to the session that created it, and ends with it."""

    def __init__(
        self, server: Server, app_id: str, name: str, mode: Literal["ephemeral", "detached"], owner: Session | None
    ) -> None:
        self.server = server
        self.app_id = app_id
        self.name = name
        self.mode: Literal["ephemeral", "detached"] = mode
        self.owner = owner
        self.client_pid = 0
        self.functions: dict[str, FunctionSpec] = {}
        self.pools: dict[tuple[str, bytes], Pool] = {}
        self.scalings: dict[tuple[str, bytes], Scaling] = {}  # of pools whose bounds were changed since
        self.holding = server.overload.holding()
        self.recording = asyncio.Lock()
        self.recorded = False
        self.stopping = False
        self.containers_started = 0
        self.inputs_done = 0
        self.inputs_failed = 0
        self.start_seconds = 0.0
        self.run_seconds = 0.0
        self.noted: set[str] = set()  # what its users have been told about its containers
        self._empty = asyncio.Event()

    @property
    def spec(self) -> AppSpec:
        """What another server must know to take it up."""
        scalings = (PoolScaling(*key, scaling) for key, scaling in self.scalings.items())
        return AppSpec(self.app_id, self.name, self.mode, tuple(self.functions.values()), tuple(scalings))

    @property
    def state(self) -> str:
        """The word for where it is in its life."""
        return "stopping" if self.stopping else self.mode

    @property
    def containers(self) -> int:
        """Containers that are not gone."""
        return sum(len(pool.containers) for pool in self.pools.values())

    @property
    def idle(self) -> bool:
        """Whether none of its functions has anything to do."""
        return all(pool.idle for pool in self.pools.values())

    @property
    def spawned_pending(self) -> int:
        """Spawned inputs without a recorded result."""
        return self.server.spawned.pending(self.app_id)

    @property
    def finished(self) -> bool:
        """Whether it is detached, has done all there was, and nobody is left who could call it."""
        left = self.containers or self.spawned_pending or self.stopping or not self.idle
        return self.mode == "detached" and self.owner is None and not left

    def add_variant(self, message: AddVariant, of_container: bool) -> None:
        """Makes a variant of one of its functions callable. Raises InvalidError and PermissionDeniedError."""
        base = self.functions[message.base_id]
        if message.function_id in self.functions and self.functions[message.function_id].variant_of == message.base_id:
            return
        if base.variant_of or message.function_id in self.server.functions:
            raise errors.InvalidError(f"{message.function_id} cannot be a variant of {message.base_id}")
        if len(self.functions) >= FUNCTIONS:
            raise errors.InvalidError(f"app {self.name} has {FUNCTIONS:,} functions and variants of functions")
        function = message.variant.of(base, message.function_id)
        if function.max_held > MAX_HELD:
            raise errors.InvalidError(f"{function.name} would run {function.max_held:,} inputs in one container")
        if of_container:
            # Its code sees what its app's functions were given, and must not ask for any other stored secret.
            known = {secret.name for one in self.functions.values() for secret in one.secrets}
            if any(secret.name not in known for secret in function.secrets if secret.name):
                raise errors.PermissionDeniedError(f"{function.name} names a secret that no function of its app has")
            volumes = {volume.name for one in self.functions.values() for volume in one.volumes}
            if any(volume.name not in volumes for volume in function.volumes):
                raise errors.PermissionDeniedError(f"{function.name} names a volume that no function of its app has")
        self.functions[function.function_id] = function
        self.server.functions[function.function_id] = self
        self.server.spawn(self.server.definitions.keep(self))

    def pool(self, function_id: str, params: bytes) -> Pool:
        """The pool for a function and parameters, made when it is first asked for. Raises NotFoundError, InvalidError,
        UnimplementedError or ResourceExhaustedError where there can be none."""
        key = function_id, params
        pool = self.pools.get(key)
        if pool is None:
            function = self.functions.get(function_id)
            if function is None:
                raise errors.NotFoundError(
                    f"app {self.app_id} has no function {function_id}; its app may have been stopped"
                )
            if function.unimplemented:
                raise errors.UnimplementedError(
                    f"{function.name} needs {', '.join(function.unimplemented)}, "
                    "which this version of farcall does not have yet"
                )
            if function.interpreter is None and not function.image_id:
                raise errors.InvalidError(f"{function.name} names no interpreter")
            pool = self.pools[key] = Pool(self.server, self, function, params, self.scaling(function_id, params))
        return pool

    def scaling(self, function_id: str, params: bytes) -> Scaling:
        """The bounds of a pool, which need not have been asked for yet."""
        return self.scalings.get((function_id, params)) or self.functions[function_id].scaling

    def update_scaling(self, function_id: str, params: bytes, changes: Mapping[str, Any]) -> Scaling:
        """Changes bounds of a pool; returns those that hold then. Raises InvalidError, and what `pool` raises."""
        scaling = self.scaling(function_id, params).changed(self.functions[function_id].name, changes)
        key = function_id, params
        pool = self.pool(*key) if scaling.min_containers else self.pools.get(key)
        self.scalings[key] = scaling
        if pool is not None:
            pool.scaler.bounds = scaling
        return scaling

    def keep_warm(self, functions: Iterable[FunctionSpec]) -> None:
        """Starts those pools that are to have containers before their first input. Raises what `pool` raises."""
        for function in functions:
            if not function.unimplemented:
                known = {(function.function_id, b"")} if not function.is_class else set[tuple[str, bytes]]()
                for key in known.union(key for key in self.scalings if key[0] == function.function_id):
                    if self.scaling(*key).min_containers:
                        self.pool(*key).scaler.scale()

    def container_gone(self) -> None:
        """A container of its is gone; the last one may be waited for."""
        if self.stopping and self.containers == 0:
            self._empty.set()

    async def stop(self, grace: float) -> None:
        """Stops all containers, running their exit hooks for at most `grace` seconds; returns when all are gone."""
        if not self.stopping:
            self.stopping = True
            for pool in self.pools.values():
                pool.scaler.close()
        now = self.server.now()
        for pool in self.pools.values():
            for container in list(pool.containers):
                container.stop(grace, "its app stopped", now)
        if self.containers:
            await self._empty.wait()

    def kill(self) -> None:
        """Ends all containers at once."""
        for pool in self.pools.values():
            for container in list(pool.containers):
                container.kill("its app was stopped")
