"""One container, as its worker sees it."""

from __future__ import annotations

import enum
import itertools
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from farcall.errors import ContainerCrashedError, FarcallError
from farcall.launcher.messages import Exited
from farcall.spec.function import FunctionSpec
from farcall.wire import messages
from farcall.wire.frames import MAX_BODY
from farcall.wire.page import SharedPage
from farcall.wire.transport import Transport
from farcall.wire.volumes import MountedVolume
from farcall.worker.filesystems import Mounted
from farcall.worker.limit import OutputLimit

_FRAME_BYTES = MAX_BODY - 16 * 1024  # of values in one frame; the rest is for the message around them
_FRAME_DESCRIPTORS = 48
CANCEL_GRACE = 2.0  # seconds a cancelled or timed out input has to end before its container is replaced
_SIGNAL_AGAIN = (
    0.5  # seconds after which an input that is to end is told again: a signal just before a sleep goes unheard
)
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
    credit: int = 0  # items a generator may send before it must wait
    batch: range = range(0)  # the numbers of the inputs that it runs together with, where it runs in a batch
    handed_at: float = 0.0
    started_at: float = 0.0  # when it was seen to have started, 0: not yet


@dataclass(frozen=True)
class End:
    """How a container ended. `reason` is why farcall ended it, "" where it ended by its own doing or was lost; `lost`
    says that it went with its launcher, `severed` that it closed its connection; `error` is why it could not be
    made, or was ended before it was ready."""

    exited: Exited | None
    reason: str
    lost: bool
    error: FarcallError | None = None
    severed: bool = False
    refused: bool = False  # its worker would not have it; another one may

    @property
    def killed(self) -> bool:
        """Whether somebody killed it, but for a limit that it reached: no program ends itself like that."""
        exited = self.exited
        if exited is None:
            return isinstance(self.error, ContainerCrashedError)  # while it was made
        if self.error is not None:
            return False  # we did, for it was not ready in time
        return exited.signal == signal.SIGKILL and not (exited.out_of_memory or exited.disk_exceeded)

    def describe(self) -> str:
        """The end in words, for people."""
        exited = self.exited
        if self.error is not None:
            return f"could not be made: {str(self.error).rpartition('the container could not be made: ')[2]}"
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

    def on_made(self, container: Container) -> None:
        """Its process runs, and goes on to import."""
        ...

    def on_loaded(self, container: Container, error: bytes | None) -> None:
        """Import and enter hooks are over; with an error the container ends by itself."""
        ...

    def on_message(self, container: Container, message: Any, fds: tuple[int, ...]) -> None:
        """Results, items, and what user code asks of the server."""
        ...

    def on_stopping(self, container: Container) -> None:
        """It is being ended and takes no more inputs; said once."""
        ...

    def on_taken_back(self, container: Container, tokens: list[Any], blocked_seconds: float | None) -> None:
        """Of a container elsewhere: these inputs have not run there, and will not. `blocked_seconds` says that it has
        started nothing for so long."""
        ...

    def on_timeout(self, token: Any) -> None:
        """An input has run longer than it may; its container is stopping it."""
        ...

    def on_gone(self, container: Container, end: End, started: list[Any], unstarted: list[Any]) -> None:
        """Nothing of the container is left. `started` and `unstarted` are the tokens of inputs without a result."""
        ...


class Keeper(Protocol):
    """Who has the process of a container."""

    def signal(self, container: Container, number: int) -> None:
        """Sends a signal to the runner; one that is gone is no error."""
        ...

    def kill(self, container: Container, reason: str) -> None:
        """Ends it at once; it is not blamed on its inputs."""
        ...


class Container:
    """A running container: its connection, the inputs it holds, and the page that says which of them runs."""

    def __init__(
        self,
        worker: Keeper,
        container_id: str,
        app_id: str,
        function: FunctionSpec,
        params: bytes,
        owner: Owner,
        now: float,
        gpus: tuple[int, ...] = (),
        page: SharedPage | None = None,
    ) -> None:
        self.worker = worker
        self.container_id = container_id
        self.app_id = app_id
        self.function = function
        self.params = params
        self.owner = owner
        self.gpus = gpus  # their numbers on the machine
        self.where = ""  # the name of the machine, where it is another
        self.state = State.STARTING
        self.created_at = now
        self.ready_at = 0.0
        self.idle_since = now
        self.start_seconds = 0.0
        self.inputs_done = 0
        self.answers = 0  # inputs that have their result
        self.timeline: dict[str, float] = {}
        self.notes: list[str] = []
        self.transport: Transport | None = None
        self.prints: OutputLimit | None = None  # for what comes as messages; the pipes have their own
        self.page_fd = SharedPage.create(function.max_held) if page is None else -1
        self.page = SharedPage(self.page_fd) if page is None else page
        self.mounted: Mounted | None = None  # the trees it is made from
        self.on_mounted: Callable[[], None] = lambda: None  # that is known, and they are kept for it
        self.volumes: tuple[MountedVolume, ...] = ()
        self.pidfd = -1
        self.said_hello = False  # its runner; the launcher may not have told yet that it exists
        self.reason = ""  # why farcall ends it
        self.exited: Exited | None = None
        self.error: FarcallError | None = None
        self.lost = False
        self.doomed = False  # it is to be killed, if need be as soon as it has been started
        self.severed = False  # it lives without its connection, which only its own code can have closed
        self.reported_error = False  # its import or enter hook failed, and it said so
        self.kill_at = 0.0  # monotonic; 0: never
        self._drains_for: float | None = None  # it is to stop, with that grace, once it holds no inputs
        self._stop_by = 0.0  # the same for its exit hooks, once it is to stop
        self._concurrent = function.concurrency.max_inputs > 1
        self._handed: dict[int, Assignment] = {}
        self._seq = 0
        self._batches: dict[int, int] = {}  # how many of a batch have no answer, by its first number
        self._cancelled: set[int] = set()
        self._ending: dict[int, float] = {}  # cancelled inputs that run, and until when they may
        self._signal_at = 0.0  # when the runner is signalled once more
        self._final: Assignment | None = None  # the input that ran when the container ended

    @property
    def holds(self) -> int:
        """How many inputs it has been handed and not answered."""
        return len(self._handed)

    @property
    def occupied(self) -> int:
        """How many things it has been given to run at once: inputs, or batches of them."""
        return len(self._handed) if self.function.batching is None else len(self._batches)

    @property
    def is_reachable(self) -> bool:
        """Whether it can be given inputs now, as far as the way to it goes."""
        return True

    @property
    def ending(self) -> bool:
        """Whether an input is being stopped, with which the container may have to go."""
        return bool(self._ending)

    def running(self) -> Assignment | None:
        """The input whose code runs now, or ran when the container ended. None where several run; of a batch, the
        first."""
        if self.state is State.GONE:
            return self._final
        started = self.page.started
        if self._concurrent:
            running = itertools.takewhile(lambda seq: seq <= started, self._handed)
            seq = next(running, 0)
            batch = self._handed[seq].batch if seq else range(0)
            return None if any(other not in batch for other in running) else self._handed.get(seq)
        assignment = self._handed.get(started)
        return self._handed.get(assignment.batch.start) if assignment is not None and assignment.batch else assignment

    def running_seconds(self, now: float) -> float:
        """How long the input that runs longest has been running, 0 where none is."""
        first = next(iter(self._handed), 0)
        if first == 0 or first > self.page.started:
            return 0.0
        # Where one runs at a time, those before it have ended: their results are on their way.
        since = (self._handed[first].started_at or now) if self._concurrent else self.page.started_at
        return max(0.0, now - since)

    def unstarted_seconds(self, now: float) -> float:
        """How long the input that was handed out next waits to be started, 0 where none does."""
        started = self.page.started
        return next((now - one.handed_at for seq, one in self._handed.items() if seq > started), 0.0)

    def add_steps(self, steps: Mapping[str, float]) -> None:
        """Steps of its start, in seconds since it was asked for; the timeline keeps them in order."""
        self.timeline = dict(sorted({**self.timeline, **steps}.items(), key=lambda step: step[1]))

    def held(self, now: float) -> list[tuple[Any, float | None]]:
        """The owner's objects of the inputs it holds, in order, and how long each has been running, None where it has
        not started. None of one that is gone."""
        if self.state is State.GONE:
            return []
        started = self.page.started
        found: list[tuple[Any, float | None]] = []
        for seq, assignment in self._handed.items():
            since = assignment.started_at or (now if self._concurrent else self.page.started_at)
            found.append((assignment.token, max(0.0, now - since) if seq <= started else None))
        return found

    # --- inputs

    def hand(self, assignments: Sequence[Assignment], now: float, *, batch: bool = False) -> None:
        """Sends inputs to the runner, which starts them in order, or all at once as one batch."""
        start = 0
        together = range(self._seq + 1, self._seq + 1 + len(assignments)) if batch else range(0)
        if batch:
            self._batches[together.start] = len(assignments)
        while start < len(assignments):
            first = assignments[start]
            inputs: list[messages.RunInput] = []
            fds: list[int] = []
            size = 0
            for assignment in assignments[start:]:
                if inputs and (
                    assignment.call_id != first.call_id
                    or assignment.method != first.method
                    or assignment.credit != first.credit
                    or size + len(assignment.data) > _FRAME_BYTES
                    or len(fds) >= _FRAME_DESCRIPTORS
                ):
                    break
                self._seq += 1
                self._handed[self._seq] = assignment
                assignment.handed_at, assignment.batch = now, together
                inputs.append(messages.RunInput(self._seq, assignment.index, assignment.data, len(assignment.fds)))
                size += len(assignment.data) + 24
                fds.extend(os.dup(fd) for fd in assignment.fds)
            assert self.transport is not None
            last = together.stop - 1 if batch else 0
            self.transport.send(messages.Run(first.call_id, first.method, inputs, first.credit, last), fds)
            start += len(inputs)

    def answered(self, seq: int) -> Assignment | None:
        """An input has its result; None where it had one already or was taken back."""
        self._cancelled.discard(seq)
        if self._ending.pop(seq, None) is not None:
            self.kill_at = self._stop_by or next(iter(self._ending.values()), 0.0)
        assignment = self._let_go(seq)
        self.answers += assignment is not None
        if self._drains_for is not None and not self._handed and self.transport is not None:
            self.transport.send(messages.Stop(self._drains_for))
            self._drains_for = None
        return assignment

    def _let_go(self, seq: int) -> Assignment | None:
        assignment = self._handed.pop(seq, None)
        if assignment is not None and assignment.batch:
            first = assignment.batch.start
            self._batches[first] -= 1
            if self._batches[first] == 0:
                del self._batches[first]
        return assignment

    def assignment(self, seq: int) -> Assignment | None:
        """The input of that number, where it is still held."""
        return self._handed.get(seq)

    def take_back(self) -> list[Any]:
        """Takes back inputs that have not started; returns their tokens. They will not run here. Where one runs at a
        time, the first that it holds stays."""
        started = self.page.started
        first = 0 if self._concurrent else next(iter(self._handed), 0)
        seqs = [seq for seq in self._handed if seq > max(started, first)]
        if not seqs:
            return []
        started = self.page.revoke(seqs[0], seqs[-1])
        # Of those that have started meanwhile, the runner says itself whether it ran them (REVOKED).
        tokens: list[Any] = []
        for seq in seqs:
            if seq > started and (assignment := self._let_go(seq)) is not None:
                tokens.append(assignment.token)
        return tokens

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
        if not self._concurrent or seq > self.page.started:
            self.page.cancel(seq, reason)
        if self.transport is not None:
            self.transport.send(messages.CancelInput(seq, reason))
        if seq > self.page.started or any(
            other in self._handed and other not in self._cancelled for other in self._handed[seq].batch
        ):
            return  # it will not be started, or the batch runs on for the others
        if not self._concurrent:
            self.worker.signal(self, signal.SIGUSR1)
            self._signal_at = now + _SIGNAL_AGAIN
        self._ending[seq] = now + CANCEL_GRACE
        self.kill_at = self.kill_at or now + CANCEL_GRACE

    def credit(self, token: Any, items: int) -> None:
        """The consumer of a generator it runs can take `items` more."""
        for seq, assignment in self._handed.items():
            if assignment.token is token and self.transport is not None:
                self.transport.send(messages.RunnerCredit(seq, items))

    def check_time(self, now: float) -> list[Assignment]:
        """Times out the inputs that have run too long; returns them then, once."""
        if self._ending and 0.0 < self._signal_at <= now:
            self._signal_at = 0.0
            self.worker.signal(self, signal.SIGUSR1)
        if self.state is not State.READY:
            return []
        started = self.page.started
        late: list[int] = []
        for seq, assignment in self._handed.items():
            if seq > started:
                break
            if not assignment.started_at:
                assignment.started_at = now if self._concurrent else self.page.started_at
            if now - assignment.started_at >= self.function.timeout and seq not in self._cancelled:
                late.append(seq)
        for seq in late:
            self._cancel(seq, SharedPage.TIMED_OUT, now)
        return [self._handed[seq] for seq in late]

    # --- ending

    def drain(self, grace: float, reason: str, now: float) -> list[Any]:
        """Lets it finish the inputs that run, within their timeout, and then as `stop`. Returns the owner's objects of
        the inputs that it holds and will not run."""
        if self.state is not State.READY or not self._handed:
            self.stop(grace, reason, now)
            return []
        back = self.take_back()
        self.state = State.STOPPING
        self.reason = reason
        self._drains_for = grace
        self._stop_by = self.kill_at = now + self.function.timeout + grace
        return back

    def stop(self, grace: float, reason: str, now: float) -> None:
        """Lets it finish: exit hooks run, for at most `grace` seconds. Inputs that run are cancelled first."""
        if self.state in (State.STOPPING, State.GONE):
            return
        loading = self.state in (State.STARTING, State.LOADING)
        self.reason = reason
        self.take_no_more()
        if self.transport is None or loading:
            # Nothing of the user's has been promised an exit hook yet.
            self.kill(reason)
            return
        self._stop_by = self.kill_at = now + grace
        # Where inputs run beside each other, the runner cancels them, and leaves those that cannot be.
        if not self._concurrent and self._handed:
            for seq in [seq for seq in self._handed if seq <= self.page.started]:
                self._cancel(seq, SharedPage.CANCELLED, now)
            if self._ending:
                self.kill_at = now + STOP_GRACE
        self.transport.send(messages.Stop(grace))

    def kill(self, reason: str) -> None:
        """Ends it at once; it is not blamed on its inputs."""
        self.worker.kill(self, reason)

    def take_no_more(self) -> None:
        """It is being ended, in whatever way."""
        if self.state not in (State.STOPPING, State.GONE):
            self.state = State.STOPPING
            self.owner.on_stopping(self)

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
