"""What `@app.function` and `@app.cls` say, as one value."""

from typing import Annotated, Literal

import msgspec

from farcall.spec.container import Bind, Interpreter, Runtime
from farcall.spec.gpu import GpuRequest
from farcall.spec.scaling import Scaling
from farcall.spec.secret import SecretSpec
from farcall.spec.volume import VolumeSpec

MAX_INPUTS = 1000  # that run at once in a container
LOSSES = 8  # of its container in a row, through no fault of the function, before an input fails
MAX_BATCH = 1000  # inputs
MAX_WAIT_MS = 600_000
MAX_HELD = 10_000  # inputs of one container, where it runs several batches at once

# Checked where a message is decoded: a container may send some of these.
Cores = Annotated[float, msgspec.Meta(gt=0)]
MiB = Annotated[int, msgspec.Meta(gt=0)]


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often and after which delay a failed attempt is repeated; delays are seconds."""

    max_retries: Annotated[int, msgspec.Meta(ge=0)] = 0
    initial_delay: float = 1.0
    backoff_coefficient: float = 1.0
    max_delay: float = 60.0

    def delay(self, retry: int) -> float:
        """Seconds to wait before retry number `retry`, counted from 1; never more than `max_delay`."""
        try:
            return min(self.max_delay, self.initial_delay * self.backoff_coefficient ** (retry - 1))
        except OverflowError:  # of the power, which the cap makes nothing of
            return self.max_delay


class Concurrency(msgspec.Struct, frozen=True):
    """How many inputs (with `Batching`: batches) a container runs at once, at most, and how many the autoscaler aims
    at."""

    max_inputs: Annotated[int, msgspec.Meta(ge=1, le=MAX_INPUTS)] = 1
    target_inputs: Annotated[int, msgspec.Meta(ge=1, le=MAX_INPUTS)] = 1


class Batching(msgspec.Struct, frozen=True):
    """Inputs are run in batches. One that is not full waits for more inputs until its first has waited `wait_ms`
    milliseconds."""

    max_batch_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH)]
    wait_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_WAIT_MS)]


class MethodSpec(msgspec.Struct, frozen=True):
    """One callable of a function or class. A plain function has exactly one, named ''."""

    name: str
    is_generator: bool = False
    is_async: bool = False


class Source(msgspec.Struct, frozen=True):
    """Where the container finds the user's code.

    `module` is imported with the folders of `paths` in front of `sys.path`; `script` is set where the module is a file
    run as a program, so that it is loaded from there under `module`'s name. Such a module, and with `is_main` one that
    is run with -m, also stands for `__main__`.
    `pickled` holds the function or class itself, by value, in place of a module.
    """

    module: str
    qualname: str
    script: str | None = None
    paths: tuple[str, ...] = ()
    pickled: bytes | None = None
    is_main: bool = False


class TreeRef(msgspec.Struct, frozen=True):
    """A tree of the content store that containers see at `target`: all of it, or what is at `path` in it, a folder or a
    file. What a container writes to a `writable` one, only it sees; with `written_at` it does so there, and `target` is
    read-only."""

    tree_id: str
    target: str
    path: str = ""
    writable: bool = False
    written_at: str = ""


class FunctionSpec(msgspec.Struct, frozen=True):
    """One function or class of an app, complete: server, worker and runner need nothing else to run it."""

    function_id: str  # "fu-..." or, for a class, "cs-..."
    name: str
    source: Source
    methods: tuple[MethodSpec, ...]
    interpreter: Interpreter | None = None
    is_class: bool = False
    cpu: tuple[Cores, Cores | None] = (0.125, None)  # request, limit
    memory: tuple[MiB, MiB | None] = (128, None)  # request, limit
    disk: int | None = None  # MiB
    gpus: tuple[GpuRequest, ...] = ()  # alternatives, the most wanted first
    retries: RetryPolicy = RetryPolicy()
    timeout: float = 300.0  # seconds, of one attempt
    startup_timeout: float = 300.0  # seconds, imports and enter hooks
    scaling: Scaling = Scaling()
    env: dict[str, str] = {}  # the image's; `secrets` are put over it
    binds: tuple[Bind, ...] = ()
    block_network: bool = False
    single_use_containers: bool = False
    concurrency: Concurrency = Concurrency()
    batching: Batching | None = None
    compat: Literal["", "modal"] = ""
    runtime: Runtime = "native"
    unimplemented: tuple[str, ...] = ()  # features declared that this version cannot do
    image_id: str = ""  # "im-...", an image that is built; "": the host's own system and interpreter
    trees: tuple[TreeRef, ...] = ()  # the user's source and other local files
    variant_of: str = ""  # the id of the function or class that it is a variant of
    workdir: str = ""  # where it starts; "": the image's, or /root
    secrets: tuple[SecretSpec, ...] = ()  # later ones win; what `env=` says is the last
    volumes: tuple[VolumeSpec, ...] = ()
    regions: tuple[str, ...] = ()  # of workers, or their labels as "key=value": one of them; (): anywhere

    def without_secrets(self) -> "FunctionSpec":
        """The same for whoever need not know the values of its environment."""
        return msgspec.structs.replace(self, env={}, secrets=())

    @property
    def target_held(self) -> int:
        """How many inputs a container is to run at once, where the load allows a choice."""
        return self.concurrency.target_inputs * (1 if self.batching is None else self.batching.max_batch_size)

    @property
    def max_held(self) -> int:
        """How many inputs a container runs at once, at most."""
        return self.concurrency.max_inputs * (1 if self.batching is None else self.batching.max_batch_size)

    def method(self, name: str) -> MethodSpec | None:
        """The method of that name, None where there is none."""
        return next((method for method in self.methods if method.name == name), None)


class PoolScaling(msgspec.Struct, frozen=True):
    """The bounds of one pool, where they were changed while the app runs: of a function, or of a class with these
    parameters."""

    function_id: str
    params: bytes
    scaling: Scaling


class AppSpec(msgspec.Struct, frozen=True):
    """An app as a client hands it over, or as a server keeps it, with what was changed since."""

    app_id: str
    name: str
    mode: Literal["ephemeral", "detached"]
    functions: tuple[FunctionSpec, ...]
    scalings: tuple[PoolScaling, ...] = ()
