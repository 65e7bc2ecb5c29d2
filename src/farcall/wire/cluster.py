"""Messages between a server and its workers, on the channels of their link.

The server opens all channels. One is for the worker itself and begins with `Control`, one for content and begins with
`Contents`, and one for each container, which begins with `StartContainer`. On that one, what is meant for the
container's runner, and what the runner says, travels as it would on the runner's own socket, inputs and results among
it, but for Load, Loaded and Stop. Inputs have the numbers that the server gave them, at both ends.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from farcall.spec.container import Interpreter
from farcall.spec.function import FunctionSpec
from farcall.wire import messages
from farcall.wire.execs import ExecCommand, ExecInput, ExecOutput, ExecResize, ExecSignal, ExecTaken
from farcall.wire.message import DescriptorCount, Message
from farcall.wire.volumes import MountedVolume


class ImageRoot(msgspec.Struct, frozen=True):
    """A built image, as far as a container needs it. Where its runner lies is the worker's affair."""

    tree: str
    interpreter: Interpreter
    env: dict[str, str]
    workdir: str
    entrypoint: tuple[str, ...]


class ContainerEnd(msgspec.Struct, frozen=True):
    """How a container ended, as `farcall.worker.container.End` says it; `refused`: the worker would not have it."""

    exit_code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False
    memory_peak: int = 0
    memory_limit: int = 0
    killed_by_us: bool = False
    disk_exceeded: bool = False
    has_exited: bool = False
    reason: str = ""
    lost: bool = False
    severed: bool = False
    error_code: str = ""
    error: str = ""
    refused: bool = False


# --- the worker's own channel ----------------------------------------------------------------------------------------


class Control(Message, tag=190):
    """Server: this channel is the worker's own."""


class Heartbeat(Message, tag=191):
    """Worker: I am here; numbers grow."""

    number: int


class Lease(Message, tag=192):
    """Server: the Heartbeat of that number has come; the lease counts from when it was sent."""

    number: int


class Measure(Message, tag=193):
    """Server: what do the containers use? Answer: Measured."""

    seq: int


class Measured(Message, tag=194):
    """Worker: processor seconds, bytes of memory and processes of containers, by id."""

    seq: int
    usages: dict[str, tuple[float, int, int]]


class Prepare(Message, tag=195):
    """Server: containers of this interpreter may soon be wanted."""

    interpreter: Interpreter


class Leaving(Message, tag=196):
    """Worker: I am to end, give me nothing further. It goes when it has no containers."""


class Goodbye(Message, tag=197):
    """Server: I end, and your containers with me."""


# --- the channel for content -----------------------------------------------------------------------------------------


class Contents(Message, tag=200):
    """Server: this channel is for content."""


class ReadContent(Message, tag=201):
    """Worker: a blob, by its name in a tier (`farcall.content.tiers`), that belongs to a tree of my containers. Answer:
    Done, body the blob."""

    seq: int
    name: str


class Sharer(msgspec.Struct, frozen=True, array_like=True):
    """A worker that may have a tree, and where it gives it to others; port 0 for nowhere."""

    worker_id: str
    host: str
    port: int


class Sharers(Message, tag=202):
    """Server: these workers, you among them, may have this tree now, and give its content to each other; no others, and
    none where there are none. `in_stores` says that object stores may have it. Sent to workers that said a `peer_port`.
    """

    tree: str
    in_stores: bool
    workers: list[Sharer]


# --- a container's channel -------------------------------------------------------------------------------------------


class StartContainer(Message, tag=210):
    """Server: make this container. `function.env` is all of its environment. Where `descriptors` is 1,
    `function.source.pickled` is b"" and rides along as a memory file."""

    container_id: str
    app_id: str
    function: FunctionSpec
    params: bytes
    image: ImageRoot | None
    volumes: tuple[MountedVolume, ...]
    gpus: tuple[int, ...]
    descriptors: DescriptorCount = 0


class EndContainer(Message, tag=211):
    """Server: end it: at once, with exit hooks of `grace` seconds, or so once it has done what it runs."""

    how: Literal["kill", "stop", "drain"]
    grace: float
    reason: str


class TakeBack(Message, tag=212):
    """Server: inputs that have not started are not to. Answer: TakenBack, where there are any."""


class TakenBack(Message, tag=213):
    """Worker: these inputs have not run here and will not. `is_blocked` says that the container starts nothing now."""

    inputs: list[int]
    is_blocked: bool = False
    seconds: float = 0.0  # that the first of them waited to be started


class TimedOut(Message, tag=214):
    """Worker: this input has run longer than it may, and is being stopped."""

    seq: int


class ContainerMade(Message, tag=215):
    """Worker: its process runs, and goes on to import."""

    timeline: dict[str, float]


class ContainerLoaded(Message, tag=216):
    """Worker: import and enter hooks are over. `error` is a dumped exception."""

    timeline: dict[str, float]
    notes: list[str]
    start_seconds: float
    error: bytes | None


class ContainerStopping(Message, tag=217):
    """Worker: it is being ended and takes no more inputs."""


class ContainerGone(Message, tag=218):
    """Worker: nothing of it is left; the last message of its channel. `started` are inputs without a result that had
    started."""

    end: ContainerEnd
    started: list[int]


class PipeText(Message, tag=219):
    """Worker: something that was written past Python; `seq` is the input that ran, 0 where that is not known."""

    stream: Literal["stdout", "stderr"]
    text: str
    seq: int


class ExecEnded(Message, tag=220):
    """Worker: the command of that number has ended, body an ExecEnd, or could not be run."""

    seq: int
    body: bytes
    failure: messages.Failure | None = None


class HoldExec(Message, tag=221):
    """Server: who reads that command's output is behind: send no more of it, or go on."""

    command: int
    held: bool


OfContainer = (
    messages.FromRunner
    | TakenBack
    | TimedOut
    | ContainerMade
    | ContainerLoaded
    | ContainerStopping
    | ContainerGone
    | PipeText
    | ExecOutput
    | ExecTaken
    | ExecEnded
)
"""What comes from a container's channel to the server."""

ToContainer = (
    messages.ToRunner
    | StartContainer
    | EndContainer
    | TakeBack
    | ExecCommand
    | ExecInput
    | ExecResize
    | ExecSignal
    | HoldExec
)

OfWorker = Heartbeat | Measured | Leaving | ReadContent
"""What comes from a worker's other channels to the server."""

ToWorker = (
    Control | Contents | Sharers | Lease | Measure | Prepare | Goodbye | messages.Done | messages.Failed | ToContainer
)
"""What comes to a worker, on channels of all kinds."""
