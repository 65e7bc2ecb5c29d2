"""From what the decorators said to the specs that the server is given."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from farcall.errors import InvalidError
from farcall.sdk import ids, source, watched
from farcall.sdk.cls import Cls
from farcall.sdk.function import Function
from farcall.sdk.variants import secrets_of, volumes_of
from farcall.spec.container import Bind, Interpreter, Runtime
from farcall.spec.function import FunctionSpec, MethodSpec
from farcall.spec.function import Source as SourceSpec

if TYPE_CHECKING:
    from farcall.sdk.app import App
    from farcall.sdk.builds import Builds
    from farcall.sdk.client import Client
    from farcall.sdk.image import Image
    from farcall.sdk.image_parts import LocalFiles
    from farcall.sdk.local_trees import LocalTrees


class Surroundings(NamedTuple):
    """What all functions of a run share: the Python, what isolates containers, whether `import modal` is farcall; and
    whether functions run in this process, so that no image and no tree is needed."""

    interpreter: Interpreter | None = None
    runtime: Runtime = "native"
    compat: bool = False
    local: bool = False
    elsewhere: bool = False  # the server is on another machine


def surroundings() -> Surroundings:
    """Those of this program: its own interpreter, and what the user has set. Turns to local mode where that is set."""
    from farcall.interpreters import probe
    from farcall.sdk import embedded, local

    found = embedded.program_settings()
    if found.local:
        local.use_local()
    if local.is_active():
        return Surroundings(local=True)
    compat = sys.modules.get("farcall.compat")
    if found.server:
        version = ".".join(map(str, sys.version_info[:3]))
        interpreter = Interpreter("", version, "", (), "")  # no path of here is one there
    else:
        interpreter = probe(sys.executable)
    return Surroundings(
        interpreter,
        found.runtime,
        compat is not None and compat.installed(),
        elsewhere=bool(found.server),
    )


class Preparation:
    """An app on its way from what the decorators said to the spec that the server is given.

    Features that this version does not have are noted on the functions that declare them. Content stays in the store
    until `close`.
    """

    def __init__(self, app: App, app_id: str, shared: Surroundings) -> None:
        if not shared.local and not shared.elsewhere:
            from farcall.sdk import embedded

            embedded.check_system()  # before anything is read that only a server on this machine can use
        from farcall.sdk.image_parts import Resolution
        from farcall.sdk.local_trees import LocalTrees

        self._shared = shared
        self._trees = LocalTrees()
        self._resolution = Resolution(self._trees, compat=shared.compat)
        self._functions: list[tuple[FunctionSpec, Image | None]] = []
        self._builds: Builds | None = None
        self._installed: Image | None = None
        members: list[Function[..., Any, Any] | Cls[..., Any]] = [
            *app.registered_functions.values(),
            *app.registered_classes.values(),
        ]
        try:
            for member in members:
                self._add(member, app_id)
            watched.tell(self._trees.paths)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """The app has ended, or will not begin."""
        self._trees.close()

    def build(self, client: Client) -> None:
        """Has the images built, and brings what the functions mount. Raises ImageBuildError."""
        self._trees.bring_to(client)
        if self._builds is not None:
            self._builds.run(client)

    async def build_async(self, client: Client) -> None:
        """`build`, awaited."""
        import asyncio

        await asyncio.to_thread(self._trees.bring_to, client)
        if self._builds is not None:
            await self._builds.run_async(client)

    def functions(self) -> tuple[FunctionSpec, ...]:
        """The specs of all functions and classes, with the images that are built.

        Raises InvalidError for an image that cannot run its function.
        """
        return tuple(self._placed(spec, image) for spec, image in self._functions)

    def _add(self, member: Function[..., Any, Any] | Cls[..., Any], app_id: str) -> None:
        image = member.declaration.image or member.app.image or self._default_image()
        features = missing(member, image, self._shared)
        member.add_unimplemented(features)
        self._functions.append((_spec(member, image, app_id, self._shared, self._trees), image))
        if image is None or image.is_host or features or self._shared.local:
            return
        if self._builds is None:
            from farcall.sdk.builds import Builds

            self._builds = Builds(self._resolution)
        self._builds.add(image, member.name)

    def _default_image(self) -> Image | None:
        """The image of functions that name none: None for this machine's own system and interpreter. Elsewhere it has
        what this interpreter has."""
        if self._shared.local or not self._shared.elsewhere:
            return None
        if self._installed is None:
            from farcall.sdk.image import Image

            self._installed = Image.from_installed()
        return self._installed

    def _placed(self, spec: FunctionSpec, image: Image | None) -> FunctionSpec:
        built = None if self._builds is None else self._builds.built.get(id(image))
        if built is None:
            return spec
        if not built.python:
            raise InvalidError(
                f"{spec.name}: its image {image!r} has no Python: add one with add_python=, as in "
                'farcall.Image.from_registry("...", add_python="3.12")'
            )
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        if spec.source.pickled is not None and not f"{built.python}.".startswith(f"{here}."):
            raise InvalidError(
                f"{spec.name} is sent by value, from Python {here} to an image with {built.python}, which cannot read "
                f"it: use an image with Python {here}, or define the function in a module"
            )
        return msgspec.structs.replace(spec, image_id=built.image_id)


def missing(
    member: Function[..., Any, Any] | Cls[..., Any], image: Image | None, shared: Surroundings
) -> tuple[str, ...]:
    """The features of image and app that this version, or this way to run them, does not have."""
    features = list(image.unimplemented) if image is not None else []
    if shared.runtime != "native" and volumes_of(member.app, member.declaration):
        features.append("volumes= (with --runtime process nothing is mounted)")
    elif shared.local and volumes_of(member.app, member.declaration):
        features.append("volumes= (with --local nothing is mounted)")
    return tuple(features)


def _spec(
    member: Function[..., Any, Any] | Cls[..., Any],
    image: Image | None,
    app_id: str,
    shared: Surroundings,
    trees: LocalTrees,
) -> FunctionSpec:
    declaration = member.declaration
    is_class = isinstance(member, Cls)
    raw = member.raw
    assert raw is not None  # only declared functions are registered
    include = member.app.include_source if declaration.include_source is None else declaration.include_source
    found = source.find(raw, serialized=declaration.serialized, include=include)
    folders, added = source.local_of(image) if image is not None else ((), ())
    for file in added:
        if any(file.target == other.target and file.source != other.source for other in found.files):
            raise InvalidError(f"{member.name}: two different files would be mounted at {file.target}")
    files = tuple(dict.fromkeys((*found.files, *added)))
    trees.paths |= {file.source for file in files}
    mounts = not shared.local and shared.runtime == "native"
    return FunctionSpec(
        function_id=ids.function_id(app_id, member.name, is_class=is_class),
        name=member.name,
        source=_with_paths(found.source, folders),
        methods=_methods(member),
        interpreter=shared.interpreter,
        is_class=is_class,
        cpu=declaration.cpu,
        memory=declaration.memory,
        disk=declaration.disk,
        gpus=declaration.gpus,
        retries=declaration.retries,
        timeout=declaration.timeout,
        startup_timeout=declaration.startup_timeout,
        scaling=declaration.scaling,
        env=image.host_environment if image is not None else {},
        binds=() if mounts else _binds(files),
        block_network=declaration.block_network,
        single_use_containers=declaration.single_use_containers,
        concurrency=declaration.concurrency,
        batching=declaration.batching,
        compat="modal" if shared.compat else "",
        runtime=shared.runtime,
        unimplemented=member.marks,
        secrets=secrets_of(member.app, declaration),
        volumes=volumes_of(member.app, declaration),
        regions=declaration.regions,
        trees=trees.mounted(files) if mounts else (),
        workdir=image.host_workdir if image is not None else "",
    )


def _binds(files: Sequence[LocalFiles]) -> tuple[Bind, ...]:
    """Where nothing can be mounted, the function sees the files themselves."""
    return tuple(Bind(file.source, file.target) for file in files)


def _with_paths(found: SourceSpec, folders: tuple[str, ...]) -> SourceSpec:
    paths = tuple(dict.fromkeys((*found.paths, *folders)))
    return SourceSpec(found.module, found.qualname, found.script, paths, found.pickled, found.is_main)


def _methods(member: Function[..., Any, Any] | Cls[..., Any]) -> tuple[MethodSpec, ...]:
    if isinstance(member, Cls):
        return tuple(MethodSpec(name, info.is_generator, info.is_async) for name, info in member.shape.methods.items())
    info = member.info_of_code
    return (MethodSpec("", info.is_generator, info.is_async),)
