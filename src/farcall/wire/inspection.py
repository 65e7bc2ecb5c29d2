"""Messages for looking at what runs, program to server. A container may send none of them.

Times are seconds since the epoch, durations seconds.
"""

import msgspec

from farcall.wire.message import Message


class ListApps(Message, tag=130):
    """Ask for the apps that run, with `ended` also for those that stopped within the last week. Answer: Done, body a
    list of AppListing, newest first."""

    seq: int
    ended: bool = False


class GetApp(Message, tag=131):
    """Ask about one app. Answer: Done, body an AppDetails."""

    seq: int
    app_id: str


class ListContainers(Message, tag=132):
    """Ask for all containers of functions that are not gone. Answer: Done, body a list of ContainerListing, oldest
    first."""

    seq: int


class GetContainer(Message, tag=133):
    """Ask about one container, perhaps one of the last that ended. Answer: Done, body a ContainerDetails."""

    seq: int
    container_id: str


class StopContainer(Message, tag=134):
    """End a container. What it runs is run again elsewhere, unless it may finish first: `graceful`. Answer: Done, once
    it is gone."""

    seq: int
    container_id: str
    graceful: bool = False


class ListCalls(Message, tag=135):
    """Ask for the newest calls, spawned ones and those in memory that have inputs without a result; `app_id` "": of all
    apps. Answer: Done, body a list of CallListing, newest first."""

    seq: int
    app_id: str = ""
    limit: int = 100
    unfinished: bool = False


class GetCall(Message, tag=136):
    """Ask about one call and its inputs from number `first` on. Answer: Done, body a CallDetails."""

    seq: int
    call_id: str
    first: int = 0
    limit: int = 1000


class GetOverview(Message, tag=137):
    """Ask about everything that runs, at once. Answer: Done, body an Overview."""

    seq: int


class AppListing(msgspec.Struct):
    """An app. `running` and `waiting` are inputs, `done` and `failed` those since this server has known the app."""

    app_id: str
    name: str
    state: str  # "ephemeral", "detached", "stopping" or "stopped"
    created_at: float
    stopped_at: float | None = None
    functions: int = 0
    containers: int = 0
    running: int = 0
    waiting: int = 0
    done: int = 0
    failed: int = 0


class FunctionListing(msgspec.Struct):
    """A function or class of an app. `starting` of its `containers` are not ready yet."""

    function_id: str
    name: str
    is_class: bool
    containers: int = 0
    starting: int = 0
    running: int = 0
    waiting: int = 0
    mean_seconds: float | None = None  # of late, for one input


class ContainerListing(msgspec.Struct):
    """A container. What it uses is None where no cgroup measures it."""

    container_id: str
    app_id: str
    app: str
    function: str
    state: str  # "starting", "importing", "ready", "stopping" or "gone"
    created_at: float
    running: int = 0  # inputs that have started
    queued: int = 0  # inputs handed out ahead
    done: int = 0
    cpu_seconds: float | None = None
    memory: int | None = None  # bytes, without cached files
    processes: int | None = None
    worker: str = ""  # the name of the machine where it is, "" on the server's own


class InputListing(msgspec.Struct):
    """One input of a call. `error` is that of the platform, if one ended it; exceptions of user code are not looked
    into."""

    call_id: str
    index: int
    state: str  # "waiting", "queued", "running", "done", "failed" or "cancelled"
    function: str = ""
    attempts: int = 1
    container_id: str = ""
    seconds: float | None = None  # it has been running
    finished_at: float | None = None
    error: str = ""


class AppDetails(msgspec.Struct):
    """Body of the answer to GetApp."""

    app: AppListing
    functions: list[FunctionListing]
    containers: list[ContainerListing]


class ContainerDetails(msgspec.Struct):
    """Body of the answer to GetContainer. `timeline` are the steps of its start in seconds since it was asked for, in
    order; `ended` is how it ended, "" while it has not."""

    container: ContainerListing
    timeline: dict[str, float]
    notes: list[str]
    inputs: list[InputListing]
    cpu: tuple[float, float | None]  # cores: request, limit
    memory: tuple[int, int | None]  # MiB: request, limit
    python: str
    image_id: str
    runtime: str
    ended: str = ""
    ended_at: float | None = None


class CallListing(msgspec.Struct):
    """A call. `failed` of its `finished` inputs have no result; None where they are too many to be counted."""

    call_id: str
    kind: str  # "remote", "map", "generator" or "spawned"
    app_id: str
    app: str
    function: str
    state: str  # "pending", "done", "failed" or "cancelled"
    created_at: float
    finished_at: float | None = None
    inputs: int = 1
    finished: int = 0
    failed: int | None = 0


class CallDetails(msgspec.Struct):
    """Body of the answer to GetCall."""

    call: CallListing
    inputs: list[InputListing]


class Overview(msgspec.Struct):
    """Body of the answer to GetOverview. `cores` and `memory` (bytes) are the machine's, `uptime` the server's."""

    version: str
    uptime: float
    cores: int
    memory: int
    memory_available: int
    apps: list[AppDetails]
    workers: dict[str, str] = {}  # of other machines: the state of each, by name
