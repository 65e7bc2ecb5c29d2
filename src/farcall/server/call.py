"""Calls and their inputs, as the server holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from farcall.errors import ProtocolError
from farcall.spec.function import MethodSpec
from farcall.wire import messages

if TYPE_CHECKING:
    from farcall.server.backlog import Backlog
    from farcall.server.flow import Flow
    from farcall.server.pool import Pool
    from farcall.server.session import Session
    from farcall.wire.testing import InjectFault
    from farcall.worker.container import Container

Kind = Literal["remote", "map", "generator", "spawned"]


INPUT_BYTES = 200 * 1024  # of an input beside its descriptors: it must fit a frame, with more around it


def check_size(one: messages.Input) -> None:
    """Raises ProtocolError for an input that would fit no frame to a container."""
    if len(one.data) > INPUT_BYTES:
        raise ProtocolError(f"input {one.index} has {len(one.data):,} bytes beside its memory file")


class Input:
    """One input that has no result yet. Its descriptors are the server's until then."""

    __slots__ = (
        "attempts",
        "call",
        "container",
        "credit",
        "data",
        "fault",
        "fds",
        "file",
        "index",
        "losses",
        "submitted_at",
        "timed_out",
        "waiting_since",
    )

    def __init__(self, call: Call, index: int, data: bytes, fds: tuple[int, ...], now: float) -> None:
        self.call = call
        self.index = index
        self.data = data
        self.fds = fds
        self.attempts = 0  # that spent the retry budget
        self.losses = 0  # in a row
        self.container: Container | None = None
        self.timed_out = False
        self.fault: InjectFault | None = None  # what a test has it suffer when the user's code has run
        self.credit = 0  # items of a generator that its container may still send
        self.file: int | None = None  # by which its app holds its memory file
        self.submitted_at = now
        self.waiting_since = now

    @property
    def has_no_result(self) -> bool:
        """Whether it is wanted, and not over."""
        return self.call.inputs.get(self.index) is self


class Call:
    """One call: where its results go, and the inputs that have none yet."""

    def __init__(
        self, call_id: str, pool: Pool, method: MethodSpec, kind: Kind, session: Session | None, now: float
    ) -> None:
        self.call_id = call_id
        self.pool = pool
        self.method = method
        self.kind: Kind = kind
        self.session = session  # None for a spawned call: its results go to the store
        self.inputs: dict[int, Input] = {}
        self.created_at = now
        self.told_waiting = 0.0  # when its caller was last told why it waits
        self.backlog: Backlog | None = None  # of a spawned call: where its inputs come from
        self.flow: Flow | None = None  # of a map: what its consumer has not taken
        self.failed = False

    @property
    def app_id(self) -> str:
        """The app whose function it calls."""
        return self.pool.app.app_id
