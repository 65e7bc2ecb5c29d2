"""What the SDK tells whoever listens, as plain values: `farcall.sdk.output.listener` gets them.

Named tuples, because every program imports them and a dataclass costs it 10 ms of imports.
"""

from typing import Literal, NamedTuple


class LogLine(NamedTuple):
    """A piece of a container's output: a line with its newline, or a part of one. `time` is seconds since the epoch;
    `call_id` and `function` are empty where it is not known which input wrote it; `index` is its place in the call."""

    time: float
    function: str
    call_id: str
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] - the field's word; nobody looks for a position in it
    container_id: str
    stream: Literal["stdout", "stderr", "system"]
    text: str


class CallWaiting(NamedTuple):
    """A call has waited for over a second: `reason` says for what. None: it waits no more."""

    call_id: str
    function: str
    reason: str | None


class MapProgress(NamedTuple):
    """How far a map is. `done` counts all inputs that ended, `failed` those of them that failed; `total` is None as
    long as the input iterator goes on. The last event of a map has `finished`."""

    call_id: str
    function: str
    done: int
    failed: int
    total: int | None
    finished: bool


class AppStats(NamedTuple):
    """What an app has and has had. `start_seconds` and `run_seconds` are sums over its containers and its inputs."""

    app_id: str
    containers_live: int
    containers_started: int
    inputs_done: int
    inputs_failed: int
    start_seconds: float
    run_seconds: float


class BuildStep(NamedTuple):
    """A step of an image has come to another state, is further on, or has printed `text` (whole lines).

    `image` names the image for people, "" where the program has only one; `key` is the same for a step that two images
    share. `seconds` is since it began to run. `progress` is for people, and replaced by the next.
    """

    image: str
    step: int  # from 1
    steps: int
    title: str
    state: Literal["queued", "cached", "running", "done", "failed"]
    text: str
    progress: str
    seconds: float
    key: str


class BuildEnd(NamedTuple):
    """No more steps of the image will come: it is built, or will not be."""

    image: str
    built: bool


class Notice(NamedTuple):
    """What is being done that takes a while, and belongs to no call."""

    text: str


Event = Notice | LogLine | CallWaiting | MapProgress | AppStats | BuildStep | BuildEnd
