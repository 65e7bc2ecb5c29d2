"""What worker and launcher say to each other: one message per SEQPACKET datagram, msgpack, tagged by type name.

The worker asks, the launcher answers each request with exactly one reply that carries the request's `seq`;
`Exited`, `ExecEnded` and `TemplateState` come unasked. File descriptors ride on the datagram that names them
(SCM_RIGHTS), in the documented order.
"""

import msgspec

from farcall.spec.container import ContainerSpec, Interpreter, MountMode, TreeMount

MAX_DATAGRAM = 192 * 1024  # bytes; below the default socket buffer of 208 KiB


class Hello(msgspec.Struct, tag=True):
    """First message of a worker, and of the launcher in answer."""

    version: str
    pid: int


class Prepare(msgspec.Struct, tag=True):
    """Make the base template for this interpreter ready, so that the first start by fork finds it warm."""

    seq: int
    interpreter: Interpreter


class EndTemplate(msgspec.Struct, tag=True):
    """Memory is short: end this base template, and make no other for a while. Has no reply; TemplateState follows."""

    key: str


class PrepareTree(msgspec.Struct, tag=True):
    """Make a tree of a content store ready to be mounted, if it is not. `lease` keeps it there."""

    seq: int
    store: str
    lease: str
    tree_id: str


class Start(msgspec.Struct, tag=True):
    """Make a container. Carries four descriptors: control socket, stdout, stderr, shared page (they become 3, 1, 2, 4
    in the runner; 0 is /dev/null; 5 is the lifeline, made by the launcher)."""

    seq: int
    spec: ContainerSpec


class Reattach(msgspec.Struct, tag=True):
    """Give a running container a new control socket after its worker went away. Carries that one descriptor, which the
    launcher passes on over the container's lifeline."""

    seq: int
    container_id: str


class Signal(msgspec.Struct, tag=True):
    """Send a signal to the runner (not to pid 1). SIGKILL ends the whole container."""

    seq: int
    container_id: str
    signal: int


class Exec(msgspec.Struct, tag=True):
    """Start a command in a container that runs, confined as everything there. Carries its standard input, output and
    error; none where it is to have a terminal, of (rows, columns). Answer: ExecStarted; ExecEnded comes later."""

    seq: int
    container_id: str
    command: list[str]
    environment: dict[str, str] = {}  # over the container's
    workdir: str = ""  # "": the container's
    terminal: tuple[int, int] | None = None


class SignalExec(msgspec.Struct, tag=True):
    """Send a signal to a command and all in its process group; one that has ended is no error. Has no reply."""

    container_id: str
    exec_id: int
    signal: int


class Measure(msgspec.Struct, tag=True):
    """Ask what containers use now. Answer: Measured."""

    seq: int
    container_ids: list[str]


class List(msgspec.Struct, tag=True):
    """Ask for all live containers, and for the exits no worker has acknowledged."""

    seq: int


class AckExit(msgspec.Struct, tag=True):
    """The worker has seen this exit; the launcher may forget it. Has no reply."""

    container_id: str


class Shutdown(msgspec.Struct, tag=True):
    """Kill everything, sweep mounts, cgroups and namespaces, reply and end."""

    seq: int


class Done(msgspec.Struct, tag=True):
    """The request succeeded."""

    seq: int


class TreePrepared(msgspec.Struct, tag=True):
    """The tree is ready to be mounted, in the way that this machine has."""

    seq: int
    mount: TreeMount
    mode: MountMode


NO_NETWORK = "no network"  # how the note begins that says why a container has none


class Started(msgspec.Struct, tag=True):
    """The container exists. Carries one descriptor: the pidfd of its pid 1.

    `timeline` is seconds since the request arrived, by step; `notes` are one-line reductions a user should know of
    (no cgroup: the memory limit is not enforced, no network on box: slirp4netns is missing).
    """

    seq: int
    container_id: str
    pid: int
    timeline: dict[str, float]
    notes: list[str] = []


class ExecStarted(msgspec.Struct, tag=True):
    """The command is started: named `exec_id` from here on. Carries the controlling end of its terminal, if it has
    one."""

    seq: int
    exec_id: int


class ExecEnded(msgspec.Struct, tag=True):
    """The command has ended, by itself or with its container. Exactly one of `exit_code` and `signal` is set."""

    exec_id: int
    exit_code: int | None
    signal: int | None


class Usage(msgspec.Struct, frozen=True):
    """What a container uses. `cpu` is seconds of processor time since its start."""

    cpu: float
    memory: int  # bytes, without files that are only cached
    processes: int


class Measured(msgspec.Struct, tag=True):
    """What containers use. Those that have no cgroup, or are gone, are left out."""

    seq: int
    usages: dict[str, Usage]


class Failed(msgspec.Struct, tag=True):
    """The request failed. `code` is one of farcall.errors; `message` says what and what to do next."""

    seq: int
    code: str
    message: str


class TemplateState(msgspec.Struct, tag=True):
    """A base template is there and takes so many MiB of memory; 0: it has ended. Comes unasked, and after Hello."""

    key: str
    memory: int


class Exited(msgspec.Struct, tag=True):
    """A container is gone, and everything it had with it. Exactly one of `exit_code` and `signal` is set.

    `memory_peak` and `memory_limit` are bytes, 0 where unknown.
    """

    container_id: str
    exit_code: int | None
    signal: int | None
    out_of_memory: bool
    memory_peak: int
    memory_limit: int
    killed_by_us: bool  # we sent SIGKILL on the worker's request
    disk_exceeded: bool = False  # we killed it because its writable area outgrew `limits.disk`


class Listed(msgspec.Struct, tag=True):
    """All live containers, and the exits not yet acknowledged. Carries the pidfds of `containers` in order
    (at most 200 a message; `more` says that a further List gives the rest)."""

    seq: int
    containers: list[str]
    exits: list[Exited]
    more: bool = False


Request = (
    Hello
    | Prepare
    | EndTemplate
    | PrepareTree
    | Start
    | Reattach
    | Signal
    | Exec
    | SignalExec
    | Measure
    | List
    | AckExit
    | Shutdown
)
Reply = (
    Hello
    | Done
    | TreePrepared
    | Started
    | Failed
    | Exited
    | TemplateState
    | Listed
    | ExecStarted
    | ExecEnded
    | Measured
)
