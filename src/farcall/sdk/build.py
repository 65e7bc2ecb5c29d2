"""From what the decorators said to the specs that the server is given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from farcall.errors import InvalidError
from farcall.sdk import ids, source
from farcall.sdk.cls import Cls
from farcall.sdk.function import Function
from farcall.spec.container import Interpreter, Runtime
from farcall.spec.function import FunctionSpec, MethodSpec
from farcall.spec.function import Source as SourceSpec
from farcall.spec.secret import SecretSpec

if TYPE_CHECKING:
    from farcall.sdk.app import App
    from farcall.sdk.image import Image


class Built(NamedTuple):
    """What `specs` returns: the functions' specs, and the packages that images named and this interpreter has."""

    functions: tuple[FunctionSpec, ...]
    packages: tuple[str, ...]


class Surroundings(NamedTuple):
    """What all functions of a run share: the Python, what isolates containers, whether `import modal` is farcall; and
    whether the user wants to see only what the program itself says."""

    interpreter: Interpreter | None = None
    runtime: Runtime = "native"
    compat: bool = False
    quiet: bool = False


def surroundings() -> Surroundings:
    """Those of this program: its own interpreter, and what the user has set. Turns to local mode where that is set."""
    from farcall import settings
    from farcall.interpreters import probe
    from farcall.sdk import local

    path = getattr(sys.modules["__main__"], "__file__", None)
    found = settings.load(folder=None if path is None else Path(path).absolute().parent)
    if found.local:
        local.use_local()
    if local.is_active():
        return Surroundings()
    compat = sys.modules.get("farcall.compat")
    return Surroundings(probe(sys.executable), found.runtime, compat is not None and compat.installed(), found.quiet)


def specs(app: App, app_id: str, shared: Surroundings) -> Built:
    """The specs of all functions and classes of an app, whose features not available here are noted on them."""
    made: list[FunctionSpec] = []
    packages: dict[str, None] = {}
    members: list[Function[..., Any, Any] | Cls[..., Any]] = [
        *app.registered_functions.values(),
        *app.registered_classes.values(),
    ]
    for member in members:
        image = member.declaration.image or member.app.image
        features = missing(member, image)
        member.add_unimplemented(features)
        made.append(_spec(member, image, app_id, shared))
        if image is not None and not features:
            packages |= dict.fromkeys(image.packages)
    return Built(tuple(made), tuple(packages))


def missing(member: Function[..., Any, Any] | Cls[..., Any], image: Image | None) -> tuple[str, ...]:
    """The features of image and app that this version does not have."""
    features = list(image.unimplemented()) if image is not None else []
    if member.app.volumes:
        features.append("App(volumes=)")
    return tuple(features)


def _spec(
    member: Function[..., Any, Any] | Cls[..., Any],
    image: Image | None,
    app_id: str,
    shared: Surroundings,
) -> FunctionSpec:
    declaration = member.declaration
    is_class = isinstance(member, Cls)
    raw = member.raw
    assert raw is not None  # only declared functions are registered
    include = member.app.include_source if declaration.include_source is None else declaration.include_source
    found = source.find(raw, serialized=declaration.serialized, include=include)
    folders, binds = image.mounts() if image is not None else ((), ())
    for bind in binds:
        if any(bind.target == other.target and bind.source != other.source for other in found.binds):
            raise InvalidError(f"{member.name}: two different files would be mounted at {bind.target}")
    secrets = [secret.spec for secret in (*member.app.secrets, *declaration.secrets)]
    if declaration.env:
        secrets.append(SecretSpec(values=declaration.env))
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
        retries=declaration.retries,
        timeout=declaration.timeout,
        startup_timeout=declaration.startup_timeout,
        scaling=declaration.scaling,
        env=image.environment if image is not None else {},
        binds=tuple(dict.fromkeys((*found.binds, *binds))),
        block_network=declaration.block_network,
        single_use_containers=declaration.single_use_containers,
        compat="modal" if shared.compat else "",
        runtime=shared.runtime,
        unimplemented=member.marks,
        secrets=tuple(secrets),
    )


def _with_paths(found: SourceSpec, folders: tuple[str, ...]) -> SourceSpec:
    paths = tuple(dict.fromkeys((*found.paths, *folders)))
    return SourceSpec(found.module, found.qualname, found.script, paths, found.pickled, found.is_main)


def _methods(member: Function[..., Any, Any] | Cls[..., Any]) -> tuple[MethodSpec, ...]:
    if isinstance(member, Cls):
        return tuple(MethodSpec(name, info.is_generator, info.is_async) for name, info in member.shape.methods.items())
    info = member.info_of_code
    return (MethodSpec("", info.is_generator, info.is_async),)
