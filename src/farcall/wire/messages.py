"""All messages between client and server, and between server and runner.

Each is an array on the wire, `[tag, field, ...]`, and a later version may add fields at the end only. A message with a
`seq` is a request; its one answer is a `Reply`-kind message that carries the same `seq`. `PROTOCOL_VERSION` travels in
the first message of each connection; this and the previous version are understood.

Inputs are named `(call_id, index)`, ids chosen by the client. Towards the runner an input is named by `seq`, a number
that grows by one for each input handed to that container and also stands in the page it shares with the worker.

A value is `data` plus, where `descriptors` is 1, one memory file that rides on the same frame. Frames with
several values carry their descriptors in the order of the values. Only SDK and runner look into `data`.
"""

from typing import Annotated, Literal

import msgspec

from farcall.spec.function import AppSpec, FunctionSpec
from farcall.spec.variant import Variant
from farcall.wire.builds import BuildEvent, BuildImage, CancelBuild, PublishImage
from farcall.wire.content import AddContent, OfferTree, ReleaseContent
from farcall.wire.execs import ExecCommand, ExecInput, ExecOutput, ExecResize, ExecSignal, ExecTaken
from farcall.wire.inspection import (
    GetApp,
    GetCall,
    GetContainer,
    GetOverview,
    ListApps,
    ListCalls,
    ListContainers,
    StopContainer,
)
from farcall.wire.message import DescriptorCount
from farcall.wire.message import Message as _Message
from farcall.wire.scaling import PoolStats, UpdateAutoscaler
from farcall.wire.secrets import DeleteSecret, ListSecrets, PutSecret, ReadSecret
from farcall.wire.testing import AdvanceClock, GetTestReport, InjectFault
from farcall.wire.volumes import (
    AddVolumeFiles,
    CommitVolume,
    CreateVolume,
    DeleteVolume,
    GetVolume,
    ListVolumes,
    MountedVolume,
    ReadVolume,
    RenameVolume,
)
from farcall.wire.workers import (
    CreateWorkerToken,
    DrainWorker,
    ListWorkers,
    ListWorkerTokens,
    RemoveWorker,
    RevokeWorkerToken,
)

PROTOCOL_VERSION = 1

GENERATOR_WINDOW = 64  # items a generator may send ahead of its consumer

# How an input ended. The numbers travel and are stored: they never change.
OK = 0  # data is the pickled result
EXCEPTION = 1  # data is an exception of user code
PLATFORM_ERROR = 2  # data is a msgpack-encoded Failure
GENERATOR_DONE = 3  # data is the pickled number of items that were yielded
REVOKED = 4  # from a runner only: the input was taken back in time and has not run; it has no data


Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]  # bytes


class Failure(_Message):
    """An error of the platform. `code` is one of farcall.errors; `container_id` and `call_id` may be empty."""

    code: str
    message: str
    call_id: str = ""
    container_id: str = ""
    may_have_run: bool = True
    step: str = ""  # of an image-build error, as `command` and `last_lines`
    command: str = ""
    last_lines: str = ""


# --- both directions -------------------------------------------------------------------------------------------------


class Hello(_Message, tag=1):
    """First message of a client or a runner. `container_id` is empty for a client."""

    protocol: int
    version: str
    role: Literal["client", "runner"]
    pid: int
    container_id: str = ""


class Welcome(_Message, tag=2):
    """The server's answer to Hello. `prefix` is the installation it runs from, `source` the folder and the stamp of its
    files when it started. `simulated_gpus` is "H100=8,T4=4" where its GPUs are simulated."""

    protocol: int
    version: str
    server_id: str
    prefix: str
    pid: int
    source: str = ""
    simulated_gpus: str = ""


class Done(_Message, tag=3):
    """The request succeeded. `body` is msgpack, documented with the request; where `descriptors` is 1 it is b"" and
    rides along as a memory file."""

    seq: int
    body: bytes = b"\xc0"
    descriptors: DescriptorCount = 0


class Failed(_Message, tag=4):
    """The request failed, or (seq 0) a frame was refused."""

    seq: int
    failure: Failure


# --- client to server ------------------------------------------------------------------------------------------------


class Input(_Message):
    """One input of a call."""

    index: int
    data: bytes
    descriptors: DescriptorCount = 0


class Output(_Message):
    """How one input ended. `status` is one of the numbers above; `attempts` counts those of a failure."""

    index: int
    status: int
    data: bytes
    descriptors: DescriptorCount = 0
    container_id: str = ""
    attempts: int = 1


class CreateApp(_Message, tag=10):
    """Make an app's functions callable. An ephemeral app ends with the connection that created it. Answer: Done.

    A long `source.pickled` does not fit the frame: it is b"" and rides along as a memory file, one for each such
    function in order. A very long list of functions comes in several CreateApp of the same app_id.
    """

    seq: int
    app: AppSpec
    descriptors: int = 0


class StopApp(_Message, tag=11):
    """End an app: cancel its calls, stop its containers. Answer: Done once nothing of it is left, body a StopReport.
    `grace` is the seconds that exit hooks get."""

    seq: int
    app_id: str
    grace: float = 30.0


class Submit(_Message, tag=12):
    """Run inputs, in memory. Has no answer of its own: each input is answered in an Outputs message.

    `kind` is how the results are wanted. Further Submits may add inputs to the same call. `parent` is the input this
    call is made from, empty at the top. `params` are a class's pickled parameters. `window`, in the first Submit of a
    map, is how many bytes of memory files its results may have that nobody has taken (`Taken`) before further inputs
    wait; 0: any number.
    """

    call_id: str
    function_id: str
    method: str
    kind: Literal["remote", "map", "generator"]
    inputs: list[Input]
    params: bytes = b""
    parent: str = ""
    window: Size = 0


class Spawn(_Message, tag=13):
    """Record a call durably, then run it. Answer: Done, once it would survive a power cut."""

    seq: int
    call_id: str
    function_id: str
    method: str
    inputs: list[Input]
    params: bytes = b""
    parent: str = ""


class GetOutput(_Message, tag=14):
    """Ask for the result of a spawned call, waiting up to `timeout` seconds (None: as long as it takes).
    Answer: Outputs with one output and this `seq`, Pending, or Failed."""

    seq: int
    call_id: str
    index: int = 0
    timeout: float | None = None


class CancelCall(_Message, tag=15):
    """Cancel a call's inputs (`indices` None: all of them). Answer, where seq is not 0: Done."""

    seq: int
    call_id: str
    indices: list[int] | None = None
    terminate_containers: bool = False


class Credit(_Message, tag=16):
    """The consumer of a generator can take `items` more."""

    call_id: str
    index: int
    items: int


class Taken(_Message, tag=26):
    """The consumer of a map has taken results whose memory files have so many bytes, beyond those told before. `wanted`
    is the index of the result that it waits for while it keeps others, -1 where any will do."""

    call_id: str
    bytes: Size
    wanted: int = -1


class Subscribe(_Message, tag=17):
    """Send an app's logs and events on this connection until it closes. Answer: Done."""

    seq: int
    app_id: str


class ReadLogs(_Message, tag=18):
    """Read kept logs of an app, call or container. Answer: LogBatch messages, then Done; with `follow` the batches go
    on until the app, call or container is over. `since` is seconds since the epoch."""

    seq: int
    ref: str
    since: float | None = None
    grep: str = ""
    failed: bool = False
    follow: bool = False
    tail: int | None = None


class ServerStatus(_Message, tag=19):
    """Ask what the server is doing. Answer: Done, body a StatusReport."""

    seq: int


class StopServer(_Message, tag=20):
    """End the server. Without `force` it is refused while apps run. Answer: Done."""

    seq: int
    force: bool = False


class Lookup(_Message, tag=21):
    """Ask for a function's spec by id, to call it through a handle. Answer: Done, body a FunctionSpec without its
    environment and without pickled code."""

    seq: int
    function_id: str


class AddVariant(_Message, tag=25):
    """From now on `function_id` is the function `base_id` of the same app with some values changed. Has no answer:
    where it is refused, so is whatever is asked of that function."""

    function_id: str
    base_id: str
    variant: Variant


# --- server to client ------------------------------------------------------------------------------------------------


class Outputs(_Message, tag=30):
    """Results. `seq` is 0, or that of the GetOutput it answers."""

    call_id: str
    outputs: list[Output]
    seq: int = 0


class Items(_Message, tag=31):
    """Items of a generator, in order; `first` is the position of the first one."""

    call_id: str
    index: int
    first: int
    items: list[bytes]
    descriptors: list[DescriptorCount] = []


class Pending(_Message, tag=32):
    """The result asked for is not there yet."""

    seq: int


class CallWaiting(_Message, tag=33):
    """Why a call has been waiting for over a second, for people."""

    call_id: str
    reason: str


class LogEntry(_Message):
    """One piece of a container's output, or of the platform's word about it. `time` is seconds since the epoch."""

    time: float
    app_id: str
    function: str
    call_id: str
    index: int
    container_id: str
    stream: Literal["stdout", "stderr", "system"]
    text: str


class LogBatch(_Message, tag=34):
    """Log entries in order; `seq` is that of the request, 0 for a subscription."""

    seq: int
    entries: list[LogEntry]


class AppStats(_Message, tag=35):
    """What an app has and has had, sent to subscribers when it changes, at most a few times a second."""

    app_id: str
    containers_live: int
    containers_started: int
    inputs_done: int
    inputs_failed: int
    start_seconds: float
    run_seconds: float


class StopReport(msgspec.Struct):
    """Body of the answer to StopApp."""

    containers: int
    inputs_cancelled: int


class AppReport(msgspec.Struct):
    """One app in a StatusReport."""

    app_id: str
    name: str
    state: str
    functions: int
    containers: int
    pending: int
    running: int


class StatusReport(msgspec.Struct):
    """Body of the answer to ServerStatus; times are seconds."""

    version: str
    prefix: str
    pid: int
    uptime: float
    apps: list[AppReport]
    containers: int
    pending: int
    running: int
    connections: int
    gpus: dict[str, int] = {}  # how many there are of each type
    gpus_simulated: bool = False
    queued_inputs: int = 0  # of .remote and .map, in memory and without a result
    queued_bytes: int = 0
    queue_inputs: int = 0  # the most there may be
    queue_memory: int = 0
    workers: dict[str, str] = {}  # of other machines: the state of each, by name
    settings: dict[str, str] = {}  # those of servers, by name, as this one was started with them
    shut_out: list[str] = []  # workers that have joined and cannot come back, as it does not listen


# --- server to runner ------------------------------------------------------------------------------------------------


class Load(_Message, tag=50):
    """Import this function, make its class, run its enter hooks. Answer: Loaded. Where `descriptors` is 1,
    `function.source.pickled` is b"" and rides along as a memory file. With `tells_imports` the runner says at its end
    what it has imported."""

    app_id: str
    function: FunctionSpec
    params: bytes = b""
    descriptors: int = 0
    volumes: tuple[MountedVolume, ...] = ()
    tells_imports: bool = False


class RunInput(_Message):
    """One input, named by `seq` from here on."""

    seq: int
    index: int
    data: bytes
    descriptors: DescriptorCount = 0


class Run(_Message, tag=51):
    """Run these inputs, started in this order; without `Concurrency`, one after another. `credit` is how many items a
    generator may send before it must wait. `batch` is 0, or the number of the last input of the batch they belong to,
    whose other inputs come in other Runs before and after this one."""

    call_id: str
    method: str
    inputs: list[RunInput]
    credit: int = 0
    batch: int = 0


class RunnerCredit(_Message, tag=52):
    """The consumer of generator `seq` can take `items` more."""

    seq: int
    items: int


class CancelInput(_Message, tag=53):
    """Do not run, or stop running, this input. `reason` is one of the page's numbers. The runner answers with a Results
    entry either way."""

    seq: int
    reason: int = 1


class Stop(_Message, tag=54):
    """Finish: run exit hooks within `grace` seconds and exit."""

    grace: float


# --- runner to server ------------------------------------------------------------------------------------------------


class Loaded(_Message, tag=70):
    """Answer to Load. `error` is None, or a dumped exception. `seconds` is how long import and enter took."""

    seconds: float
    error: bytes | None = None


class Result(_Message):
    """How input `seq` ended; the fields are Output's."""

    seq: int
    status: int
    data: bytes
    descriptors: DescriptorCount = 0


class Results(_Message, tag=71):
    """Inputs that ended."""

    results: list[Result]


class RunnerItems(_Message, tag=72):
    """Items of the generator that runs as input `seq`."""

    seq: int
    first: int
    items: list[bytes]
    descriptors: list[DescriptorCount] = []


class Print(_Message, tag=73):
    """Something user code printed. `seq` is 0 where no input was running."""

    seq: int
    stream: Literal["stdout", "stderr"]
    text: str


class Parked(_Message, tag=74):
    """Sent first by a runner on a new connection after its worker was lost: what it still holds. `running` is 0 or the
    input that runs; `unstarted` were handed out and will not be run."""

    running: int
    unstarted: list[int]


class Imported(_Message, tag=75):
    """At the end of a runner that was asked: the files of its modules."""

    paths: list[str]


Client = (
    CreateApp
    | StopApp
    | Submit
    | Spawn
    | GetOutput
    | CancelCall
    | Credit
    | Taken
    | Subscribe
    | ReadLogs
    | ServerStatus
    | StopServer
    | Lookup
    | AddVariant
    | BuildImage
    | CancelBuild
    | PublishImage
    | PutSecret
    | DeleteSecret
    | ListSecrets
    | ReadSecret
    | UpdateAutoscaler
    | PoolStats
    | ListApps
    | GetApp
    | ListContainers
    | GetContainer
    | StopContainer
    | ListCalls
    | GetCall
    | GetOverview
    | ExecCommand
    | ExecInput
    | ExecResize
    | ExecSignal
    | CreateVolume
    | ListVolumes
    | DeleteVolume
    | RenameVolume
    | GetVolume
    | ReadVolume
    | AddVolumeFiles
    | CommitVolume
    | OfferTree
    | AddContent
    | ReleaseContent
    | CreateWorkerToken
    | ListWorkerTokens
    | RevokeWorkerToken
    | ListWorkers
    | DrainWorker
    | RemoveWorker
    | AdvanceClock
    | InjectFault
    | GetTestReport
)
FromClient = Hello | Client
ToClient = (
    Welcome
    | Done
    | Failed
    | Outputs
    | Items
    | Pending
    | CallWaiting
    | LogBatch
    | AppStats
    | BuildEvent
    | ExecOutput
    | ExecTaken
)
FromRunner = Hello | Client | Loaded | Results | RunnerItems | Print | Parked | Imported
ToRunner = ToClient | Load | Run | RunnerCredit | CancelInput | Stop
