"""One container, as its worker sees it."""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from farcall.errors import FarcallError
from farcall.launcher.messages import Exited
from farcall.spec.function import FunctionSpec
from farcall.wire import messages
from farcall.wire.frames import MAX_BODY
from farcall.wire.page import SharedPage
from farcall.wire.transport import Transport
from farcall.worker.filesystems import Mounted
from farcall.worker.limit import OutputLimit

if TYPE_CHECKING:
    from farcall.worker.worker import Worker

_FRAME_BYTES = MAX_BODY - 16 * 1024  # of values in one frame; the rest is for the message around them
_FRAME_DESCRIPTORS = 48
CANCEL_GRACE = 2.0  # seconds a cancelled or timed out input has to end before its container is replaced
STOP_GRACE = 1.5  # the same where the container is to stop anyway


class State(enum.Enum):
    """Where a container is in its life."""

    STARTING = "starting"  # being made, until its runner says hello
    LOADING = "importing"  # import and enter hooks
    READY = "ready"
    STOPPING = "stopping"  # no more inputs; exit hooks run
    GONE = "gone"


@dataclass(slots=True)
class Assignment:
    """An input for a container: what goes on the wire, and the owner's own object for it."""

    token: Any
    call_id: str
    method: str
    index: int
    data: bytes
    fds: tuple[int, ...]  # owned by the caller; duplicated for the wire


@dataclass(frozen=True)
class End:
    """How a container ended. `reason` is why farcall ended it, "" where it ended by its own doing or was lost; `lost`
    says that it went with its launcher, `severed` that it closed its connection; `error` is why it could not be
    made."""

    exited: Exited | None
    reason: str
    lost: bool
    error: FarcallError | None = None
    severed: bool = False

    def describe(self) -> str:
        """The end in words, for people."""
        exited = self.exited
        if self.error is not None:
            return f"could not be made: {self.error}"
        if exited is None:
            return "was lost with its launcher"
        if self.severed:
            return "closed its connection to farcall"
        if exited.out_of_memory:
            return (
                f"was ended by the kernel at its memory limit of {exited.memory_limit // 2**20} MiB "
                f"(peak {exited.memory_peak // 2**20} MiB)"
            )
        if exited.signal is not None:
            try:
                name = signal.Signals(exited.signal).name
            except ValueError:
                name = f"signal {exited.signal}"
            meaning = signal.strsignal(exited.signal)
            return f"was ended by {name} ({meaning})" if meaning else f"was ended by {name}"
        return f"exited with code {exited.exit_code}"


class Owner(Protocol):
    """What a container reports to. Nothing here may block."""

    def on_loaded(self, container: Container, error: bytes | None) -> None:
        """Import and enter hooks are over; with an error the container ends by itself."""
        ...

    def on_message(self, container: Container, message: Any, fds: tuple[int, ...]) -> None:
        """Results, items, and what user code asks of the server."""
        ...

    def on_gone(self, container: Container, end: End, started: list[Any], unstarted: list[Any]) -> None:
        """Nothing of the container is left. `started` and `unstarted` are the tokens of inputs without a result."""
        ...


class Container:
    """A running container: its connection, the inputs it holds, and the page that says which of them runs."""

    def __init__(
        self,
        worker: Worker,
        container_id: str,
        app_id: str,
        function: FunctionSpec,
        params: bytes,
        owner: Owner,
        now: float,
    ) -> None:
        self.worker = worker
        self.container_id = container_id
        self.app_id = app_id
        self.function = function
        self.params = params
        self.owner = owner
        self.state = State.STARTING
        self.created_at = now
        self.ready_at = 0.0
        self.idle_since = now
        self.start_seconds = 0.0
        self.inputs_done = 0
        self.timeline: dict[str, float] = {}
        self.notes: list[str] = []
        self.transport: Transport | None = None
        self.prints: OutputLimit | None = None  # for what comes as messages; the pipes have their own
        self.page_fd = SharedPage.create()
        self.page = SharedPage(self.page_fd)
        self.mounted: Mounted | None = None  # the trees it is made from
        self.pidfd = -1
        self.reason = ""  # why farcall ends it
        self.exited: Exited | None = None
        self.error: FarcallError | None = None
        self.lost = False
        self.doomed = False  # it is to be killed, if need be as soon as it has been started
        self.severed = False  # it lives without its connection, which only its own code can have closed
        self.reported_error = False  # its import or enter hook failed, and it said so
        self.kill_at = 0.0  # monotonic; 0: never
        self._stop_by = 0.0  # the same for its exit hooks, once it is to stop
        self._handed: dict[int, Assignment] = {}
        self._seq = 0
        self._cancelled: set[int] = set()
        self._ending = 0  # the cancelled input that has until `kill_at` to end
        self._final: Assignment | None = None  # the input that ran when the container ended

    @property
    def holds(self) -> int:
        """How many inputs it has been handed and not answered."""
        return len(self._handed)

    def tokens(self) -> list[Any]:
        """The owner's objects of the inputs it holds, in the order they run."""
        return [assignment.token for assignment in self._handed.values()]

    def running(self) -> Assignment | None:
        """The input whose code runs now, or ran when the container ended."""
        if self.state is State.GONE:
            return self._final
        return self._handed.get(self.page.running)

    def running_seconds(self, now: float) -> float:
        """How long the running input has been running, 0 where none is."""
        return max(0.0, now - self.page.started_at) if self.page.running else 0.0

    # --- inputs

    def hand(self, assignments: Sequence[Assignment], credit: int = 0) -> None:
        """Sends inputs to the runner, which runs them in order."""
        start = 0
        while start < len(assignments):
            first = assignments[start]
            inputs: list[messages.RunInput] = []
            fds: list[int] = []
            size = 0
            for assignment in assignments[start:]:
                if inputs and (
                    assignment.call_id != first.call_id
                    or assignment.method != first.method
                    or size + len(assignment.data) > _FRAME_BYTES
                    or len(fds) >= _FRAME_DESCRIPTORS
                ):
                    break
                self._seq += 1
                self._handed[self._seq] = assignment
                inputs.append(messages.RunInput(self._seq, assignment.index, assignment.data, len(assignment.fds)))
                size += len(assignment.data) + 24
                fds.extend(os.dup(fd) for fd in assignment.fds)
            assert self.transport is not None
            self.transport.send(messages.Run(first.call_id, first.method, inputs, credit), fds)
            start += len(inputs)

    def answered(self, seq: int) -> Assignment | None:
        """An input has its result; None where it had one already or was taken back."""
        self._cancelled.discard(seq)
        if seq == self._ending:
            self._ending = 0
            self.kill_at = self._stop_by
        return self._handed.pop(seq, None)

    def assignment(self, seq: int) -> Assignment | None:
        """The input of that number, where it is still held."""
        return self._handed.get(seq)

    def take_back(self, keep: int) -> list[Any]:
        """Takes back inputs that have not started, all but the first `keep` it holds; returns their tokens. They will
        not run here."""
        seqs = list(self._handed)[max(1, keep) :]
        if not seqs:
            return []
        started = self.page.revoke(seqs[0], seqs[-1])
        # Of those up to the one that started last, the runner says itself whether it ran them (REVOKED).
        return [self._handed.pop(seq).token for seq in seqs if seq > started]

    def cancel(self, token: Any, reason: int, now: float) -> None:
        """Stops one input it holds. An answer for it comes in any case, within `CANCEL_GRACE` or with the container's
        end."""
        for seq, assignment in self._handed.items():
            if assignment.token is token:
                self._cancel(seq, reason, now)
                return

    def _cancel(self, seq: int, reason: int, now: float) -> None:
        if seq in self._cancelled:
            return
        self._cancelled.add(seq)
        self.page.cancel(seq, reason)
        if self.transport is not None:
            self.transport.send(messages.CancelInput(seq))
        if self.page.running == seq:
            self.worker.signal(self, signal.SIGUSR1)
            self._ending = seq
            self.kill_at = self.kill_at or now + CANCEL_GRACE

    def credit(self, token: Any, items: int) -> None:
        """The consumer of a generator it runs can take `items` more."""
        for seq, assignment in self._handed.items():
            if assignment.token is token and self.transport is not None:
                self.transport.send(messages.RunnerCredit(seq, items))

    def check_time(self, now: float) -> Assignment | None:
        """Times out the running input where it has run too long; returns it then, once."""
        seq = self.page.running
        if seq == 0 or seq in self._cancelled or self.state is not State.READY:
            return None
        if now - self.page.started_at < self.function.timeout:
            return None
        assignment = self._handed.get(seq)
        if assignment is not None:
            self._cancel(seq, SharedPage.TIMED_OUT, now)
        return assignment

    # --- ending

    def stop(self, grace: float, reason: str, now: float) -> None:
        """Lets it finish: exit hooks run, for at most `grace` seconds. An input that runs is cancelled first."""
        if self.state in (State.STOPPING, State.GONE):
            return
        loading = self.state in (State.STARTING, State.LOADING)
        self.state = State.STOPPING
        self.reason = reason
        if self.transport is None or loading:
            # Nothing of the user's has been promised an exit hook yet.
            self.worker.kill(self, reason)
            return
        self._stop_by = self.kill_at = now + grace
        running = self.page.running
        if running in self._handed:
            self._cancel(running, SharedPage.CANCELLED, now)
            self.kill_at = now + STOP_GRACE
        self.transport.send(messages.Stop(grace))

    def split(self) -> tuple[list[Any], list[Any]]:
        """The tokens of the inputs it still holds: those that had started, and the others.

        Those that had ended are among the first: a runner sends the results of short ones together, and these died with
        it, or could not be sent any more.
        """
        last = self.page.started
        started = [assignment.token for seq, assignment in self._handed.items() if seq <= last]
        return started, [assignment.token for seq, assignment in self._handed.items() if seq > last]

    def close(self) -> None:
        """Lets go of its descriptors."""
        self._final = self.running()  # what it wrote last may still lie in its pipes
        if self.prints is not None:
            self.prints.close()
        self.state = State.GONE
        self.page.close()
        for fd in (self.pidfd, self.page_fd):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.page_fd = -1
