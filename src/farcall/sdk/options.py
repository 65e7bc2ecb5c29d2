"""What the decorators accept, and the one value that an accepted set of options becomes.

`App.function`, `App.cls` and `with_options` take these as keyword arguments. `Declaration.of` checks them: errors say
what, where and which range is allowed. `with_options` makes a new
`Declaration` of an old one's options and some new ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import inf
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, cast

from farcall.errors import InvalidError
from farcall.sdk.concurrency import check, concurrency
from farcall.sdk.deprecations import deprecated
from farcall.sdk.retries import policy_of
from farcall.spec.function import Batching, Concurrency, RetryPolicy
from farcall.spec.gpu import GpuRequest, parse
from farcall.spec.scaling import Scaling, at_least, seconds_within
from farcall.spec.secret import check_values
from farcall.spec.volume import VolumeSpec

if TYPE_CHECKING:
    from farcall.sdk.cloud_bucket_mount import CloudBucketMount
    from farcall.sdk.image import Image
    from farcall.sdk.network_file_system import NetworkFileSystem
    from farcall.sdk.proxy import Proxy
    from farcall.sdk.retries import Retries
    from farcall.sdk.schedule import Cron, Period
    from farcall.sdk.secret import Secret
    from farcall.sdk.volume import Volume

DEFAULT_TIMEOUT = 300
TIMEOUT_RANGE = (1, 24 * 3600)  # seconds
FORBIDDEN_MOUNTS = ("/", "/root", "/tmp")


class VariantOptions(TypedDict, total=False):
    """What `with_options` can change.

    `cpu`: cores, a request or (request, limit). `memory`: MiB, a number that is request and limit, or (request, limit).
    `gpu`: "T4", "H100:2", "any", or a list of those, the most wanted first. `env`, `secrets`: environment variables;
    the app's secrets come first, then `secrets`, then `env`, and later ones win. `volumes`: mount path to Volume.
    `retries`: a number of retries 1 s apart, or `Retries`.
    `max_containers`, `buffer_containers`: ceiling of the pool, and how many idle ones beyond the load while it is
    active. `scaledown_window`: idle seconds before a container may stop, 2 to 3600. `timeout`: seconds of one attempt,
    1 to 86400. `region`: of workers, or a label of theirs as "key=value", or a list of those: the function runs where
    one of them holds, and anywhere where no worker has any. `cloud`, `routing_region`: hints, without effect here.
    """

    cpu: float | tuple[float, float] | None
    memory: int | tuple[int, int] | None
    gpu: str | list[str] | None
    env: Mapping[str, str | None] | None
    secrets: Collection[Secret] | None
    volumes: Mapping[str | PurePosixPath, Volume | CloudBucketMount]
    retries: int | Retries | None
    max_containers: int | None
    buffer_containers: int | None
    scaledown_window: float | None
    timeout: float
    region: str | Sequence[str] | None
    cloud: str | None
    routing_region: str | None


class ClassOptions(VariantOptions, total=False):
    """What `App.cls` accepts.

    `image`: what the container's file system holds; default the app's. `serialized`: send the code itself, by value, in
    place of its module. `min_containers`: how many are kept while the app runs. `startup_timeout`: seconds for imports
    and enter hooks, default `timeout`. `ephemeral_disk`: MiB. `block_network`: no network. `single_use_containers`: one
    input for each container. `include_source`: mount the defining file or package, default the app's.
    """

    image: Image | None
    serialized: bool
    network_file_systems: Mapping[str | PurePosixPath, NetworkFileSystem]
    ephemeral_disk: int | None
    min_containers: int | None
    proxy: Proxy | None
    startup_timeout: float | None
    nonpreemptible: bool
    enable_memory_snapshot: bool
    block_network: bool
    restrict_modal_access: bool
    single_use_containers: bool
    i6pn: bool | None
    include_source: bool | None
    experimental_options: dict[str, Any] | None
    max_inputs: int | None


class FunctionOptions(ClassOptions, total=False):
    """What `App.function` accepts beyond `App.cls`.

    `name`: the function's name in the app, default its qualified name. `is_generator`: for a plain function that
    returns a generator. `schedule`: when it runs once it is deployed.
    """

    name: str | None
    is_generator: bool | None
    schedule: Cron | Period | None


class Declaration(NamedTuple):
    """What a decorator said, checked. `options` are kept so that variants can be made of them."""

    options: dict[str, Any]
    cpu: tuple[float, float | None]
    memory: tuple[int, int | None]
    disk: int | None
    gpus: tuple[GpuRequest, ...]
    retries: RetryPolicy
    timeout: float
    startup_timeout: float
    scaling: Scaling
    env: dict[str, str]
    image: Image | None
    secrets: tuple[Secret, ...]
    volumes: tuple[VolumeSpec, ...]
    regions: tuple[str, ...]
    serialized: bool
    include_source: bool | None
    block_network: bool
    single_use_containers: bool
    concurrency: Concurrency
    batching: Batching | None
    unimplemented: tuple[str, ...]

    @classmethod
    def of(cls, decorator: str, options: Mapping[str, Any]) -> Declaration:
        """Checks the keyword arguments of `decorator` (its name is for messages).

        Raises:
            InvalidError: an unknown name, or a value outside its range.
        """
        given = _known(decorator, _renamed(options))
        timeout = seconds_within(decorator, "timeout", given.get("timeout", DEFAULT_TIMEOUT), TIMEOUT_RANGE)
        startup = given.get("startup_timeout")
        disk = given.get("ephemeral_disk")
        if given.get("max_inputs") not in (None, 1):
            raise InvalidError(f"{decorator}: max_inputs can only be 1; write single_use_containers=True")
        return cls(
            options=given,
            cpu=_cpu(decorator, given.get("cpu")),
            memory=_memory(decorator, given.get("memory")),
            disk=None if disk is None else at_least(decorator, "ephemeral_disk", disk, 1),
            gpus=parse(decorator, given.get("gpu")),
            retries=policy_of(given.get("retries")),
            timeout=timeout,
            startup_timeout=timeout
            if startup is None
            else seconds_within(decorator, "startup_timeout", startup, TIMEOUT_RANGE),
            scaling=_scaling(decorator, given),
            env=_environment(decorator, given.get("env")),
            image=given.get("image"),
            secrets=checked_secrets(decorator, given.get("secrets") or ()),
            volumes=checked_volumes(decorator, given.get("volumes") or {}),
            regions=_regions(decorator, given.get("region")),
            serialized=bool(given.get("serialized", False)),
            include_source=given.get("include_source"),
            block_network=bool(given.get("block_network", False)),
            single_use_containers=bool(given.get("single_use_containers", False)) or given.get("max_inputs") == 1,
            concurrency=concurrency("allow_concurrent_inputs", given.get("_concurrent") or 1),
            batching=None,
            unimplemented=_unimplemented(decorator, given),
        )

    def marked(self, where: str, concurrency: Concurrency | None, batching: Batching | None) -> Declaration:
        """The same with what other decorators said, where they said something.

        Raises:
            InvalidError: what cannot be had together.
        """
        marked = self._replace(concurrency=concurrency or self.concurrency, batching=batching or self.batching)
        check(where, marked.concurrency, marked.batching, marked.single_use_containers)
        return marked

    def variant(self, decorator: str, changes: Mapping[str, Any]) -> Declaration:
        """The same with some options replaced; an option given as None keeps its value."""
        kept = {name: value for name, value in changes.items() if value is not None}
        unknown = set(kept) - set(VariantOptions.__annotations__)
        if unknown:
            raise InvalidError(f"{decorator}() cannot change {', '.join(sorted(unknown))}")
        return Declaration.of(decorator, self.options | kept).marked(decorator, self.concurrency, self.batching)


OLD_NAMES = {
    "concurrency_limit": "max_containers",
    "keep_warm": "min_containers",
    "container_idle_timeout": "scaledown_window",
}


def _renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for name, value in options.items():
        if name in OLD_NAMES:
            deprecated(f"{name}= is now {OLD_NAMES[name]}=")
            renamed[OLD_NAMES[name]] = value
        elif name == "allow_concurrent_inputs":
            deprecated("allow_concurrent_inputs= is now the decorator @farcall.concurrent(max_inputs=...)")
            renamed["_concurrent"] = value
        else:
            renamed[name] = value
    return renamed


def _known(decorator: str, options: dict[str, Any]) -> dict[str, Any]:
    accepted: set[str] = set(FunctionOptions.__annotations__) | {"_concurrent"}
    if decorator == "@app.cls":
        accepted -= {"name", "is_generator", "schedule"}
    for name in options:
        if name not in accepted:
            import difflib

            near = difflib.get_close_matches(name, accepted, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidError(f"{decorator} has no parameter {name!r}{hint}")
    return options


def _pair(decorator: str, name: str, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, (tuple, list)):
        return value, None
    pair = cast("Sequence[Any]", value)
    if len(pair) != 2:
        raise InvalidError(f"{decorator}: {name}={value!r} is neither a number nor (request, limit)")
    return pair[0], pair[1]


def _resource(decorator: str, name: str, value: Any, kind: type | tuple[type, ...]) -> tuple[Any, Any]:
    request, limit = _pair(decorator, name, value)
    whole = "whole " if kind is int else ""
    for number in (request, limit):
        if number is not None and (isinstance(number, bool) or not isinstance(number, kind) or not 0 < number < inf):
            raise InvalidError(
                f"{decorator}: {name}={value!r} is not a positive {whole}number or a pair (request, limit) of them"
            )
    if limit is not None and request is not None and request > limit:
        raise InvalidError(f"{decorator}: {name}={value!r} has a request above its limit")
    return request, limit


def _cpu(decorator: str, value: Any) -> tuple[float, float | None]:
    if value is None:
        return (0.125, None)
    request, limit = _resource(decorator, "cpu", value, (int, float))
    return (0.125 if request is None else float(request), None if limit is None else float(limit))


def _memory(decorator: str, value: Any) -> tuple[int, int | None]:
    if value is None:
        return (128, None)
    request, limit = _resource(decorator, "memory", value, int)
    if not isinstance(value, (tuple, list)):
        return (request, request)
    return (128 if request is None else request, limit)


def _scaling(decorator: str, given: Mapping[str, Any]) -> Scaling:
    bounds = {name: given[name] for name in Scaling.__struct_fields__ if name in given}
    return Scaling().changed(decorator, bounds)


def _regions(decorator: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    words: list[Any] = [value] if isinstance(value, str) else list(value)
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise InvalidError(f"{decorator}: region={value!r} is neither a region's name nor a list of them")
    return tuple(words)


def _environment(decorator: str, env: Mapping[str, Any] | None) -> dict[str, str]:
    for name, value in (env or {}).items():
        if not isinstance(name, str) or not isinstance(value, str | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidError(f"{decorator}: env[{name!r}] is a {type(value).__name__}; names and values are strings")
    environment = {name: value for name, value in (env or {}).items() if value is not None}
    check_values(f"{decorator}: env=", environment)
    return environment


def checked_secrets(where: str, secrets: Collection[Secret]) -> tuple[Secret, ...]:
    """The secrets given to `where`. Raises InvalidError where one is none."""
    from farcall.sdk.secret import Secret

    if not secrets:
        return ()
    if isinstance(secrets, Secret):
        raise InvalidError(f"{where}: secrets={secrets!r} is no list: write secrets=[...]")
    for secret in cast("Collection[Any]", secrets):
        if not isinstance(secret, Secret):
            shown = f"farcall.Secret.from_name({secret!r})" if isinstance(secret, str) else "farcall.Secret"
            raise InvalidError(f"{where}: secrets= has a {type(secret).__name__}; write {shown}")
    return tuple(secrets)


def checked_volumes(where: str, volumes: Mapping[Any, Any]) -> tuple[VolumeSpec, ...]:
    """The volumes given to `where`, by path; what is mounted and no volume of ours is left out.

    Raises InvalidError for a path or a combination that cannot be.
    """
    if not isinstance(volumes, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidError(f'{where}: volumes={volumes!r} is no dict: write volumes={{"/data": farcall.Volume...}}')
    if not volumes:
        return ()
    from farcall.sdk.cloud_bucket_mount import CloudBucketMount
    from farcall.sdk.volume import Volume

    found: list[VolumeSpec] = []
    for path, volume in volumes.items():
        text = str(path).rstrip("/") or "/"
        if not text.startswith("/") or str(Path(text)) != text or ".." in text.split("/"):
            raise InvalidError(f"{where}: a volume is mounted at {text!r}, which is not an absolute, plain path")
        if text in FORBIDDEN_MOUNTS:
            raise InvalidError(f"{where}: a volume cannot be mounted at {text}; choose another path, such as /data")
        if isinstance(volume, CloudBucketMount):
            continue
        if not isinstance(volume, Volume):
            raise InvalidError(f"{where}: what is mounted at {text} is a {type(volume).__name__}, not a farcall.Volume")
        found.append(volume.mounted_at(text))
    check_volumes(where, found)
    return tuple(found)


def check_volumes(where: str, volumes: Collection[VolumeSpec]) -> None:
    """Raises InvalidError where one volume is mounted twice, or one within another."""
    for one in volumes:
        for other in volumes:
            if one is other:
                continue
            if one.name == other.name:
                raise InvalidError(f"{where}: one volume is mounted at both {one.path} and {other.path}")
            if other.path.startswith(f"{one.path}/"):
                raise InvalidError(f"{where}: {other.path} is within {one.path}, where another volume is mounted")


def _unimplemented(decorator: str, given: Mapping[str, Any]) -> tuple[str, ...]:
    """The declared features that this version does not have."""
    features = [
        f"{name}={given[name]!r}"
        for name in ("proxy", "enable_memory_snapshot", "restrict_modal_access", "i6pn")
        if given.get(name)
    ]
    if given.get("network_file_systems"):
        features.append("network_file_systems=")
    if volumes := cast("Mapping[Any, Any]", given.get("volumes")):
        from farcall.sdk.cloud_bucket_mount import CloudBucketMount

        if any(isinstance(one, CloudBucketMount) for one in volumes.values()):
            features.append("volumes= with a CloudBucketMount")
    return tuple(features)
