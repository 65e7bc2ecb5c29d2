"""Building images: the order of steps, what of them was done before, and what runs where.

An image so far is a `State`: a tree, and what the configuration says. A step's key is the hash of the state before it,
of the step itself and of the content it copies; under that key the state after it is recorded. So steps are cached by
what they read, images that begin alike share their beginning, and a build that was cut short goes on after its last
whole step.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import posixpath
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from farcall import errors
from farcall.builder import commands, debian, titles
from farcall.builder.build import Build, NotBroughtError
from farcall.builder.containers import StepContainers
from farcall.builder.copying import select
from farcall.builder.elsewhere import Elsewhere
from farcall.builder.finisher import Finisher
from farcall.builder.images import PYTHONS, STEPS, Image, Images
from farcall.builder.job import run_job
from farcall.builder.keys import DEFAULT_PATH, key_of, python_key_of, variables_of, without_variables
from farcall.builder.oci.endpoint import DIRECTLY, Access
from farcall.builder.oci.reference import python_slim
from farcall.builder.progress import Progress, count_steps
from farcall.builder.requests import AddedPython, AddPython, Bootstrap, CopyTree, Fetch, Pull, State
from farcall.builder.shared import Say, SharedWork
from farcall.builder.sources import PackageSources, package_sources
from farcall.builder.tidier import Tidier
from farcall.content.lease import Lease
from farcall.content.store import Store
from farcall.interpreters import private
from farcall.spec.container import TreeMount
from farcall.spec.expansion import expand
from farcall.spec.image import (
    Apt,
    Base,
    BuiltBase,
    Call,
    Configure,
    Copy,
    DebianBase,
    Download,
    ImageConfig,
    ImageSpec,
    Pip,
    RegistryBase,
    Run,
    ScratchBase,
    Step,
    UvSync,
    configured,
    encode,
    identity,
)
from farcall.wire.builds import BuildEvent

# A registry that says this of an image that can be made without it is none.
_NO_HELP = (errors.NotFoundError, errors.AuthError, errors.RegistryError, errors.ConnectionError, errors.TimeoutError)


class Builder:
    """Builds images, and knows those that are built. All methods belong to one event loop."""

    def __init__(
        self,
        store: Store,
        containers: StepContainers,
        cache: Path,
        environ: Mapping[str, str] | None = None,
        elsewhere: Elsewhere | None = None,
        *,
        mounts: bool = True,
    ) -> None:
        """`mounts` says that containers of the images run on this machine: then they are made ready for that."""
        self.images = Images(store)
        self.elsewhere = elsewhere or Elsewhere(store, "", "")
        self.tidier = Tidier(store, containers.where)
        self._finisher = Finisher(store, self.images, containers, self.elsewhere, self.tidier, mounts)
        self._store = store
        self._containers = containers
        self._cache = cache
        self._environ = os.environ if environ is None else environ
        self._steps: SharedWork[State] = SharedWork()
        self._selections: dict[bytes, str] = {}
        self._known: dict[bytes, str] = {}  # what was asked for, and the image it came to
        self._log = logging.getLogger("farcall.builder")

    @property
    def busy(self) -> int:
        """Steps that are being done."""
        return self._steps.count

    async def build(
        self,
        spec: ImageSpec,
        secrets: Mapping[str, str],
        force: bool,
        send: Callable[[BuildEvent], None],
        access: Access = DIRECTLY,
    ) -> Image:
        """The image that `spec` describes, built as far as it is not there yet. `send` is told how it goes on; `access`
        is how registries are reached.

        Cancelled, it ends what nobody else waits for. Raises ImageBuildError, and what content and launcher raise.
        """
        progress = Progress(count_steps(spec), send)
        asked = hashlib.sha256(encode(spec)).digest()
        if not force and (image := self._find_known(asked)) is not None:
            self._finisher.compile(image)  # where that could not be done before
            return image
        with self._store.lease("build") as lease:
            build = Build(lease, secrets, force, progress, access, alone=not self.elsewhere.is_anywhere)
            try:
                image = await self._finisher.finish(await self._build(spec, build), build)
            except NotBroughtError as error:
                self._log.warning("what was built elsewhere is built here: %s", error)
                progress.restart()
                build = Build(lease, secrets, force, progress, access, alone=True)
                image = await self._finisher.finish(await self._build(spec, build), build)
        if not any(getattr(part, "force", False) for part in (spec.base, *spec.steps)):
            self._known[asked] = image.image_id
        self._finisher.compile(image)
        if not self._finisher.is_compiling(image):
            self.elsewhere.push()
        return image

    async def settle(self) -> None:
        """Returns when nothing goes on in the background any more."""
        await self._finisher.settle()
        await self.tidier.settle()
        await self.elsewhere.settle()

    async def close(self) -> None:
        """Ends what goes on in the background."""
        await self._finisher.close()
        await self.tidier.close()
        await self.elsewhere.close()

    def _find_known(self, asked: bytes) -> Image | None:
        found = self._known.get(asked)
        image = None if found is None else self.images.find(found)
        # Its runner's files are of this farcall only, and may have been removed.
        if image is not None and image.python is not None and private.existing(image.python.details()) is None:
            return None
        return image

    async def _build(self, spec: ImageSpec, build: Build) -> State:
        force = build.force
        state = await self._base(spec.base, build, force or getattr(spec.base, "force", False))
        force = force or getattr(spec.base, "force", False)
        for step in spec.steps:
            if isinstance(step, Configure):
                state = msgspec.structs.replace(state, config=configured(state.config, step))
                if step.field == "env" and "PATH" in step.pairs:
                    state = msgspec.structs.replace(state, python="")
                continue
            force = force or step.force
            state = await self._step(state, step, build, force)
        return msgspec.structs.replace(state, config=msgspec.structs.replace(state.config, args={}))

    # --- bases

    async def _base(self, base: Base, build: Build, force: bool) -> State:
        match base:
            case BuiltBase():
                image = self.images.get(base.image)
                build.progress.step(titles.of_base(base), image.image_id).cached()
                return State(image.tree, image.config, image.python.executable if image.python else "")
            case ScratchBase():
                tree = build.lease.add_tree(())
                build.progress.step(titles.of_base(base), "scratch").cached()
                return await self._with_python(State(tree), base.add_python, "", build, force)
            case RegistryBase():
                credentials = build.values(base.credentials)

                async def pull(lease: Lease, say: Say) -> State:
                    request = Pull(*self._where(lease), base.reference, credentials, *build.access)
                    return await run_job(request, State, say)

                key = key_of(identity(msgspec.structs.replace(base, add_python="")))
                state = await self._once(titles.of_base(base), key, pull, build, force)
                return await self._with_python(state, base.add_python, "", build, force)
            case DebianBase():
                return await self._debian(base, build, force)

    async def _debian(self, base: DebianBase, build: Build, force: bool) -> State:
        """Debian slim: a registry's where one can be reached, else made here, from this machine's own mirror."""
        recipe = repr((debian.RECIPE, debian.SUITE, debian.PACKAGES, os.uname().machine))
        made_here = key_of(b"debian", recipe.encode())
        reference = python_slim(base.python)
        from_registry = key_of(identity(RegistryBase(reference)))
        if not force and await self._recorded(from_registry, build) is not None:
            return await self._base(RegistryBase(reference), build, force)
        is_new = force or await self._recorded(made_here, build) is None
        refused: errors.FarcallError | None = None
        if is_new and await asyncio.to_thread(_reachable, reference, build.access):
            try:
                return await self._base(RegistryBase(reference), build, force)
            except _NO_HELP as error:
                refused = error
                build.progress.again()

        async def bootstrap(lease: Lease, say: Say) -> State:
            if refused is not None:
                say(f"Debian is made here instead: {refused}\n")
            tree = await run_job(Bootstrap(*self._where(lease)), str, say)
            return State(tree, ImageConfig(env={"PATH": DEFAULT_PATH}), "/usr/bin/python3")

        if base.python != debian.PYTHON:
            build.progress.more()
        state = await self._once(titles.of_base(base), made_here, bootstrap, build, force)
        if base.python == debian.PYTHON:
            return state
        return await self._with_python(state, base.python, debian.PYTHON, build, force)

    async def _with_python(self, state: State, version: str, own: str, build: Build, force: bool) -> State:
        """The state with an interpreter added, where one is asked for."""
        if not version:
            return state

        async def add(lease: Lease, say: Say) -> State:
            request = AddPython(*self._where(lease), state.tree, version, own, str(self._cache / "python"))
            added = await run_job(request, AddedPython, say)
            folder = posixpath.dirname(added.executable)
            path = state.config.env.get("PATH", DEFAULT_PATH)
            config = msgspec.structs.replace(state.config, env=state.config.env | {"PATH": f"{folder}:{path}"})
            before = State(added.tree, config, added.executable)
            command = commands.check_python(added.executable)
            return msgspec.structs.replace(before, tree=await self._containers.run(lease, before, command, say))

        key = key_of(b"python", version.encode(), state)
        return await self._once(f"Python {version}", key, add, build, force, state.tree)

    # --- steps

    async def _step(self, state: State, step: Step, build: Build, force: bool) -> State:
        match step:
            case Run():
                handles = {mount.target: mount.key for mount in step.mounts if mount.kind == "secret"}

                def run() -> commands.StepCommand:
                    build.values(handles)  # or says which are missing
                    return commands.of_run(step, state.config, self._sources(), build.secrets)

                return await self._command_step(state, step, build, force, run)
            case Apt():
                return await self._command_step(
                    state, step, build, force, lambda: commands.of_apt(step, self._sources())
                )
            case Pip():
                return await self._pip(state, step, build, force)
            case UvSync():
                return await self._uv_sync(state, step, build, force)
            case Copy():
                return await self._copy(state, step, build, force)
            case Download():
                return await self._download(state, step, build, force)
            case Call():
                return await self._call(state, step, build, force)
            case Configure():
                raise AssertionError("a configuration is no step of work")

    async def _command_step(
        self,
        state: State,
        step: Run | Apt | Pip | UvSync | Call,
        build: Build,
        force: bool,
        command: Callable[[], commands.StepCommand],
        *content: bytes,
    ) -> State:
        """A step that runs something in a container."""

        async def work(lease: Lease, say: Say) -> State:
            made = command()
            made = replace(made, env=made.env | build.values(step.secrets))
            after = State(await self._containers.run(lease, state, made, say), state.config)
            if not isinstance(step, Pip):
                return after  # commands may bring another Python, or take one away
            known = self._store.record(PYTHONS, python_key_of(state))
            if known is not None:
                self._store.put_record(PYTHONS, python_key_of(after), data=known.data)
            return msgspec.structs.replace(after, python=state.python)

        key = key_of(state, identity(step), *content)
        return await self._once(titles.of_step(step), key, work, build, force, state.tree)

    async def _pip(self, state: State, step: Pip, build: Build, force: bool) -> State:
        state = await self._with_known_python(state, build)
        uv = await asyncio.to_thread(commands.find_uv, step.uv_version, self._cache / "uv-versions")
        return await self._command_step(
            state, step, build, force, lambda: commands.of_pip(step, state.python, self._sources(), uv)
        )

    async def _uv_sync(self, state: State, step: UvSync, build: Build, force: bool) -> State:
        state = await self._with_known_python(state, build)
        uv = await asyncio.to_thread(commands.find_uv, step.uv_version, self._cache / "uv-versions")
        build.lease.keep_tree(step.tree)

        async def work(lease: Lease, say: Say) -> State:
            made = commands.of_uv_sync(step, state.python, self._sources(), uv)
            made = replace(made, env=made.env | build.values(step.secrets))
            copied = Copy(target=commands.PROJECT + "/", sources=(".",))
            tree = await run_job(CopyTree(*self._where(lease), state.tree, step.tree, copied, "/"), str, say)
            before = msgspec.structs.replace(state, tree=tree)
            tree = await self._containers.run(lease, before, made, say)
            path = f"{commands.PROJECT}/.venv/bin:{state.config.env.get('PATH', DEFAULT_PATH)}"
            env = state.config.env | {"PATH": path, "VIRTUAL_ENV": f"{commands.PROJECT}/.venv"}
            return State(tree, msgspec.structs.replace(state.config, env=env), f"{commands.PROJECT}/.venv/bin/python")

        key = key_of(state, identity(step), step.tree.encode())
        return await self._once(titles.of_step(step), key, work, build, force, state.tree)

    async def _copy(self, state: State, step: Copy, build: Build, force: bool) -> State:
        source, keep_owner = "", step.stage is not None or step.image is not None
        if step.stage is not None:
            source = (await self._stage(step.stage, build)).tree
        elif step.image is not None:
            source = (await self._base(step.image, build, force)).tree
        elif step.tree:
            source = step.tree
            build.lease.keep_tree(source)
        step = without_variables(step, state.config)
        content = await self._selected(source, step, build) if source else ""
        workdir = state.config.workdir

        async def work(lease: Lease, say: Say) -> State:
            request = CopyTree(*self._where(lease), state.tree, source, step, workdir, keep_owner)
            return State(await run_job(request, str, say), state.config, state.python)

        key = key_of(state, identity(step), content.encode())
        needs = (state.tree, source) if source else (state.tree,)
        return await self._once(titles.of_step(step), key, work, build, force, *needs)

    async def _stage(self, spec: ImageSpec, build: Build) -> State:
        """A stage of a Dockerfile: built once, however often it is copied from."""
        name = encode(spec)
        if name not in build.stages:
            build.stages[name] = await self._build(spec, build)
        return build.stages[name]

    async def _selected(self, source: str, step: Copy, build: Build) -> str:
        """Stands for the content that a COPY takes from the tree `source`: other files in it do not count."""
        name = msgspec.msgpack.encode([source, step.sources, step.parents])
        found = self._selections.get(name)
        if found is None:
            with build.fetching():
                tree = await self.elsewhere.tree(source)
            selection = await asyncio.to_thread(select, tree, step.sources, parents=step.parents)
            found = self._selections[name] = f"{selection.tree.id} {selection.single!r}"
        return found

    async def _download(self, state: State, step: Download, build: Build, force: bool) -> State:
        if step.expand:
            variables = variables_of(state.config)
            changed = {name: expand(getattr(step, name), variables, step.expand) for name in ("url", "target", "owner")}
            step = msgspec.structs.replace(step, **changed, expand="")
        made = step

        async def work(lease: Lease, say: Say) -> State:
            request = Fetch(*self._where(lease), state.tree, made, state.config.workdir)
            return State(await run_job(request, str, say), state.config, state.python)

        return await self._once(titles.of_step(step), key_of(state, identity(step)), work, build, force, state.tree)

    async def _call(self, state: State, step: Call, build: Build, force: bool) -> State:
        state = await self._with_known_python(state, build)
        image = await self._finisher.finish(state, build)
        if image.python is None:
            raise errors.ImageBuildError(
                f"the image has no Python to run {step.function.name} with", step=titles.of_step(step)
            )
        python = image.python
        runner = private.existing(python.details())
        mounts: list[TreeMount] = []
        for tree in step.function.trees:
            build.lease.keep_tree(tree.tree_id)
            mounted = await self._containers.prepare(build.lease, tree.tree_id)
            mounts.append(msgspec.structs.replace(mounted, target=tree.target, subpath=tree.path))
        assert runner is not None

        def command() -> commands.StepCommand:
            return commands.of_call(step, python.executable, str(runner), self._sources(), tuple(mounts))

        return await self._command_step(state, step, build, force, command, step.fingerprint.encode())

    # --- what steps are made of

    async def _once(
        self,
        title: str,
        key: str,
        work: Callable[[Lease, Say], Awaitable[State]],
        build: Build,
        force: bool,
        *needs: str,
    ) -> State:
        """The state after a step, done now unless it was done before, here or elsewhere, or is being done for another
        build. The work is done when the trees that it needs are here."""
        step = build.progress.step(title, key)
        if not force and (known := await self._recorded(key, build)) is not None:
            step.cached()
            return known
        if key in self._steps:
            step.queued()
        step.running()

        async def record(say: Say) -> State:
            # A lease of its own: the build that began the work may leave it to others.
            with self._store.lease("step") as lease:
                with build.fetching():
                    await self.elsewhere.bring(lease, needs, say)
                state = await work(lease, say)
                self._store.put_record(
                    STEPS, key, trees=(state.tree,), data={"title": title, **msgspec.to_builtins(state)}
                )
            return state

        try:
            state = await self._steps.do(key, record, step.say)
            build.lease.keep_tree(state.tree)
        except errors.FarcallError as error:
            step.failed()
            if isinstance(error, errors.ImageBuildError) and not error.step:
                error.step = title
            raise
        step.done()
        return state

    async def _recorded(self, key: str, build: Build) -> State | None:
        """The state after a step that was done before. Where that was elsewhere, its tree need not be here:
        `elsewhere` brings it, if it is needed."""
        record = self._store.record(STEPS, key)
        if record is None:
            found = None if build.alone else await self.elsewhere.record(STEPS, key, State)
            if found is None:
                return None
            # Without its tree, which may never be needed here.
            self._store.put_record(STEPS, key, data=found.data)
            record = msgspec.structs.replace(found, trees=())
        state = msgspec.convert(record.data, State)
        try:
            build.lease.keep_tree(state.tree)
        except errors.NotFoundError:
            return None if record.trees or build.alone else state  # collected just now, or never brought here
        if build.alone and self._store.missing(state.tree):
            return None
        if not record.trees:
            self._store.put_record(STEPS, key, trees=(state.tree,), data=record.data)
        return state

    def _where(self, lease: Lease) -> tuple[str, str, int]:
        return self._containers.where(lease)

    def _sources(self) -> PackageSources:
        return package_sources(self._environ)

    async def _with_known_python(self, state: State, build: Build) -> State:
        python = await self._finisher.python(build.lease, state, build)
        return state if python is None else msgspec.structs.replace(state, python=python.executable)


def _reachable(reference: str, access: Access) -> bool:
    # Late: a server that never asks a registry is spared what speaks with one.
    from farcall.builder.oci.registry import reachable

    return reachable(reference, access)
