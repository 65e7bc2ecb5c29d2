"""Steps in containers: what they see, and what becomes of what they write."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from collections import deque
from pathlib import Path

from farcall.builder.commands import StepCommand
from farcall.builder.job import run_job
from farcall.builder.requests import Commit, Remove, State
from farcall.builder.shared import Say
from farcall.content.lease import Lease
from farcall.errors import FarcallError, ImageBuildError
from farcall.launcher.messages import NO_NETWORK, Exited
from farcall.spec.container import Bind, ContainerSpec, Limits, TreeMount
from farcall.worker.worker import Worker

TAIL = 20  # lines of a failed step's output in its error
_DISK = 256 * 1024  # MiB that a step may write
_FOLDER_MODE = 0o755


class StepContainers:
    """Runs the commands of steps in containers of `worker`; `cache` is the folder of what steps share."""

    def __init__(self, worker: Worker, cache: Path) -> None:
        self._worker = worker
        self._cache = cache
        self._turns: dict[str, asyncio.Lock] = {}

    async def run(self, lease: Lease, state: State, command: StepCommand, say: Say, *, keep: bool = True) -> str:
        """The tree after the command has run on `state`; the same one with `keep` False: what it wrote is forgotten.

        Raises ImageBuildError with the last lines it printed where it fails.
        """
        async with self._turns.setdefault(command.alone, asyncio.Lock()) if command.alone else contextlib.nullcontext():
            return await self._run(lease, state, command, say, keep)

    async def _run(self, lease: Lease, state: State, command: StepCommand, say: Say, keep: bool) -> str:
        root = await self.prepare(lease, state.tree)
        place = lease.scratch / f"step-{secrets.token_hex(4)}"
        place.mkdir(mode=0o711)
        tail: deque[str] = deque(maxlen=TAIL)

        def heard(text: str) -> None:
            tail.extend(text.splitlines())
            say(text)

        try:
            spec = self._spec(state, command, root, place)
            exited, notes = await self._worker.run(spec, heard)
            if exited.exit_code != 0:
                raise _failure(command, exited, tail, notes)
            if not keep:
                return state.tree
            return await run_job(Commit(*self.where(lease), state.tree, str(place), command.clamp), str)
        finally:
            await asyncio.shield(self._remove(lease, place))

    async def _remove(self, lease: Lease, place: Path) -> None:
        """Removes what a step has written. Without root some of it may belong to others."""
        try:
            await asyncio.to_thread(shutil.rmtree, place)
        except OSError:
            with contextlib.suppress(FarcallError):
                await run_job(Remove(*self.where(lease), str(place)), bool)

    async def prepare(self, lease: Lease, tree: str) -> TreeMount:
        """The tree, ready to be mounted; the lease keeps it from then on."""
        return await self._worker.prepare_tree(lease, tree)

    def where(self, lease: Lease) -> tuple[str, str, int]:
        """What a job needs to know of where things are: the first fields of each request."""
        return str(lease.store.root), lease.id, self._worker.launcher_pid

    def _spec(self, state: State, command: StepCommand, root: TreeMount, place: Path) -> ContainerSpec:
        binds = list(command.binds)
        for number, file in enumerate(command.files):
            path = place / f"file-{number}"
            path.write_bytes(file.content)
            path.chmod(file.mode)
            binds.append(Bind(str(path), file.target))
        for target, name in command.caches.items():
            folder = self._cache / name
            folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            binds.append(Bind(str(folder), target, read_only=False))
        for number, target in enumerate(command.scratch):
            folder = place / f"scratch-{number}"
            folder.mkdir(mode=0o777)
            binds.append(Bind(str(folder), target, read_only=False))
        env = dict(state.config.env) | command.env
        return ContainerSpec(
            container_id=f"ta-{os.urandom(10).hex()}",
            interpreter=None,
            limits=Limits(cpu_request=command.cpu, disk=_DISK),
            binds=tuple(binds),
            env=env,
            cwd=command.workdir or state.config.workdir or "/",
            root=root,
            trees=command.trees,
            upper=str(place),
            command=command.argv,
            user=command.user,
        )


def _failure(command: StepCommand, exited: Exited, tail: deque[str], notes: tuple[str, ...]) -> ImageBuildError:
    if exited.out_of_memory:
        how = "ran out of memory"
    elif exited.disk_exceeded:
        how = f"wrote more than {_DISK // 1024} GiB"
    elif exited.signal is not None:
        how = f"was ended by signal {exited.signal}"
    else:
        how = f"ended with status {exited.exit_code}"
    said = "\n".join(f"  {line}" for line in tail)
    last_lines = f"; its last lines:\n{said}" if said else ""
    # Most steps fetch something, and what they say without a network leads astray.
    lacking = "".join(f"\n{note}" for note in notes if note.startswith(NO_NETWORK))
    message = f"`{command.shown}` {how}{last_lines or '; it printed nothing'}{lacking}"
    return ImageBuildError(message, command=command.shown, last_lines=last_lines)
