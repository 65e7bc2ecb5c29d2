"""A pool: the containers of one function, or of one class with one set of parameters, and the inputs that wait for
them."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from farcall import errors
from farcall.server import failures
from farcall.server.call import Call, Input
from farcall.server.scaler import EXIT_GRACE, Scaler
from farcall.spec.function import LOSSES, Batching, FunctionSpec
from farcall.spec.scaling import Scaling
from farcall.wire import messages
from farcall.wire.descriptors import close_all
from farcall.wire.memory import total_size
from farcall.wire.page import SharedPage
from farcall.worker.container import Assignment, Container, End, State

if TYPE_CHECKING:
    from farcall.server.app import App
    from farcall.server.server import Server

PREFETCH_SECONDS = 0.02  # of work that a container is handed ahead
PREFETCH_INPUTS = 256
STUCK_SECONDS = 0.05  # an input that runs longer than this gives the inputs handed out behind it to idle containers
PAUSE_SECONDS = 1.0  # until a container is started again after the machine could not make one
RETRY_LINES = 3  # of log in a second, for each pool


class Pool:
    """Hands inputs to containers, of which its scaler has as many as the load needs."""

    def __init__(self, server: Server, app: App, function: FunctionSpec, params: bytes, scaling: Scaling) -> None:
        self.server = server
        self.app = app
        self.function = function
        self.params = params
        self.waiting: deque[Input] = deque()
        self.containers: list[Container] = []
        self.scaler = Scaler(self, scaling)
        self.starts_failed = 0  # in a row, through no fault of the function
        self.mean_seconds: float | None = None
        self._busy_from: dict[str, float] = {}  # by container: since when it has been working on what it answers next
        self._delayed = 0  # inputs that wait for their retry's delay
        self._retries_since = 0.0  # the second in which log lines of retries are counted
        self._retries_told = 0
        self._retries_untold = 0
        self._sweeping = False  # whether some that wait were cancelled
        self._concurrent = function.concurrency.max_inputs > 1
        self._one_at_a_time = not self._concurrent and function.batching is None
        self._held: set[Call] = set()  # maps of which inputs are held back, as nobody takes their results
        self.blocked: set[str] = set()  # containers that do not start what they are handed
        self._batch_timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do at all."""
        return (
            not self.waiting
            and not self._held
            and not self._delayed
            and all(not container.holds for container in self.containers)
        )

    @property
    def backlog(self) -> int:
        """Inputs in memory that no container has."""
        return len(self.waiting) + sum(len(call.flow) for call in self._held if call.flow is not None)

    # --- inputs

    def submit(self, inputs: Iterable[Input]) -> None:
        """New inputs, behind those that wait."""
        self.waiting.extend(inputs)
        self.dispatch()

    def unstarted(self) -> Iterator[Input]:
        """Inputs in memory only, that no container has had."""
        held = (call.flow for call in self._held if call.flow is not None)
        for one in itertools.chain(self.waiting, *held):
            if one.call.session is not None and not one.attempts and not one.losses and one.has_no_result:
                yield one

    def requeue(self, inputs: Iterable[Input]) -> None:
        """Inputs that come back, in front of those that wait, in their order."""
        now = self.server.now()
        back = [one for one in inputs if one.call.inputs.get(one.index) is one]
        for one in back:
            one.container = None
            one.waiting_since = now
        self.waiting.extendleft(reversed(back))

    def dispatch(self) -> None:
        """Hands waiting inputs to containers that have room, and scales."""
        waiting = self.waiting
        if waiting:
            ready = [container for container in self.containers if container.state is State.READY]
            ready.sort(key=_holds)
            if self.function.batching is not None:
                self._hand_batches(self.function.batching, ready)
                ready = []
            for position, container in enumerate(ready):
                room = self._room(container)
                if room <= 0:
                    continue
                # What is left is shared fairly with the containers after this one.
                share = -(-len(waiting) // (len(ready) - position))
                self._hand(container, min(room, share))
                if not waiting:
                    break
        self.scaler.scale()

    def _room(self, container: Container) -> int:
        if container.ending or not container.is_reachable or self.scaler.is_retiring(container):
            return 0  # it may have to go
        if self._concurrent or self.function.batching is not None:
            blocked = container.container_id in self.blocked
            return 0 if blocked else self.function.concurrency.max_inputs - container.occupied
        if self.function.single_use_containers:
            return 1 - container.holds - container.inputs_done
        if self.mean_seconds is None or container.running_seconds(self.server.now()) >= STUCK_SECONDS:
            return 1 - container.holds
        return min(PREFETCH_INPUTS, max(1, int(PREFETCH_SECONDS / max(self.mean_seconds, 1e-6)))) - container.holds

    def _hand_batches(self, batching: Batching, ready: list[Container]) -> None:
        """Hands out batches that are full or have waited long enough, one after another to who has fewest."""
        open_for_more = [container for container in ready if self._room(container) > 0]
        while open_for_more and self._batch_is_due(batching):
            container = min(open_for_more, key=_occupied)
            if not self._hand(container, batching.max_batch_size) or self._room(container) <= 0:
                open_for_more.remove(container)

    def _batch_is_due(self, batching: Batching) -> bool:
        """Whether what waits is to be run now; if not, a timer will see to it."""
        if not self.waiting or len(self.waiting) >= batching.max_batch_size:
            return bool(self.waiting)
        left = self.waiting[0].waiting_since + batching.wait_ms / 1000 - self.server.now()
        if left <= 0:
            return True
        if self._batch_timer is not None:
            self._batch_timer.cancel()
        self._batch_timer = self.server.loop.call_later(left, self.dispatch)
        return False

    def _hand(self, container: Container, count: int) -> bool:
        """Hands up to `count` waiting inputs to a container; False where there is none for it."""
        waiting = self.waiting
        assignments: list[Assignment] = []
        testing = self.server.testing if self.server.testing.has_faults else None
        barred: list[Input] = []
        while waiting and len(assignments) < count:
            one = waiting.popleft()
            call = one.call
            if call.inputs.get(one.index) is not one:
                continue  # cancelled meanwhile
            if (
                not self._concurrent
                and call.session is not None
                and call.session.container_id == container.container_id
            ):
                barred.append(one)  # its caller runs there and waits for it
                continue
            flow = call.flow
            if flow is not None:
                if flow.is_full and flow.hold(one):
                    self._held.add(call)
                    continue
                if (
                    flow.ahead < PREFETCH_INPUTS
                    and self._one_at_a_time
                    and container.holds + len(assignments) >= flow.ahead
                ):
                    waiting.appendleft(one)
                    break
            if call.method.is_generator:
                if not self._concurrent:
                    if assignments:
                        waiting.appendleft(one)
                        break
                    count = 1
                one.credit = messages.GENERATOR_WINDOW
            one.container = container
            if testing is not None and testing.meets(one, container):
                continue
            method = call.method.name
            assignments.append(Assignment(one, call.call_id, method, one.index, one.data, one.fds, one.credit))
        waiting.extendleft(reversed(barred))
        if assignments:
            now = self.server.now()
            if not container.holds:
                self._busy_from[container.container_id] = now
                self.scaler.busy(container)
            container.hand(assignments, now, batch=self.function.batching is not None)
            # One here has need of the processors itself.
            is_far_and_lone = bool(container.where) and self.server.is_lone(assignments[0].token.call)
            self.server.lingering.call(is_lone=is_far_and_lone)
            if self.function.single_use_containers:
                container.inputs_done += len(assignments)
        return bool(assignments)

    def cancel(self, call: Call, indices: list[int] | None, terminate: bool) -> None:
        """Cancels inputs without an answer to anybody: who waits for them has been told, or does not want to know."""
        now = self.server.now()
        for index in list(call.inputs) if indices is None else indices:
            one = call.inputs.pop(index, None)
            if one is None:
                continue
            container = one.container
            if container is not None:
                container.cancel(one, SharedPage.CANCELLED, now)
                if terminate:
                    container.kill("its input was cancelled with terminate_containers")
            else:
                self.sweep_soon()
            close_all(one.fds)
            one.fds = ()
            if call.session is not None:
                self._release(one)
        if call in self._held and call.flow is not None and not call.inputs:
            self._resume(call, call.flow.let_go())
        if not call.inputs and call.session is not None:
            self.server.calls.pop(call.call_id, None)

    def _release(self, one: Input) -> None:
        holding = self.app.holding
        holding.add(-1, -len(one.data))
        if one.file is not None:
            holding.remove_file(one.file)

    def sweep_soon(self) -> None:
        """Some that wait have ended: once for all that end together, the others are looked for."""
        if not self._sweeping:
            self._sweeping = True
            self.server.loop.call_soon(self._sweep)

    def _sweep(self) -> None:
        """Drops cancelled inputs from those that wait: they must not look like work."""
        self._sweeping = False
        self.waiting = deque(one for one in self.waiting if one.call.inputs.get(one.index) is one)

    def drain(self, container: Container) -> None:
        """Lets a container finish what it runs and end; what it was handed beyond that goes elsewhere."""
        self.requeue(container.drain(EXIT_GRACE, "stopped by hand", self.server.now()))
        self.dispatch()

    def credit(self, call: Call, index: int, items: int) -> None:
        """The consumer of a generator can take more."""
        one = call.inputs.get(index)
        if one is not None and one.container is not None:
            one.credit += items
            one.container.credit(one, items)

    def taken(self, call: Call, size: int, wanted: int) -> None:
        """The consumer of a map has taken results of so many bytes, and waits for that of an input (-1: of any)."""
        if call.flow is not None:
            free = call.flow.taken(size, wanted)
            if free:
                self._resume(call, free)
                self.dispatch()

    def _resume(self, call: Call, inputs: list[Input]) -> None:
        """Inputs that were held back wait their turn again."""
        self.waiting.extendleft(reversed(inputs))
        if not call.flow:
            self._held.discard(call)

    # --- what containers report

    def on_made(self, container: Container) -> None:
        self.scaler.made(container)

    def on_loaded(self, container: Container, error: bytes | None) -> None:
        self.app.start_seconds += container.start_seconds
        for note in container.notes:
            if container.where:
                note = f"worker {container.where}: {note}"
            if note not in self.app.noted:
                self.app.noted.add(note)
                self.server.logs.add_system(container, f"{note}\n")
        if error is None:
            self.starts_failed = 0
            self.scaler.ready(container)
            self.rebalance()
            self.dispatch()
        elif not any(other.state is State.READY for other in self.containers):
            self._fail_waiting(messages.EXCEPTION, error, container.container_id)
        self.server.fleet.schedule()

    def on_stopping(self, container: Container) -> None:
        self.scaler.stopping(container)

    def on_message(self, container: Container, message: Any, fds: tuple[int, ...]) -> None:
        match message:
            case messages.Results(results=results):
                self._results(container, results, fds)
            case messages.RunnerItems():
                self._items(container, message, fds)
            case messages.Print():
                assignment = container.assignment(message.seq)
                one: Input | None = None if assignment is None else assignment.token
                self.server.logs.add(container, message.stream, message.text, one)
            case _:
                self.server.container_session(container).handle(message, fds)

    def _results(self, container: Container, results: list[messages.Result], fds: tuple[int, ...]) -> None:
        now = self.server.now()
        self.blocked.discard(container.container_id)
        self._measure(container, len(results), now)
        call: Call | None = None
        outputs: list[messages.Output] = []
        output_fds: list[int] = []
        position = 0
        for result in results:
            mine = fds[position : position + result.descriptors]
            position += result.descriptors
            assignment = container.answered(result.seq)
            one: Input | None = None if assignment is None else assignment.token
            if one is None or one.call.inputs.get(one.index) is not one:
                close_all(mine)
                continue
            if result.status == messages.REVOKED:
                self.requeue([one])
                continue
            if one.fault is not None and result.status == messages.OK:
                close_all(mine)
                self.server.testing.suffers(one, container)
                continue
            if result.status in (messages.EXCEPTION, messages.PLATFORM_ERROR) and self.retry(one, container):
                close_all(mine)
                continue
            if one.call is not call:
                if call is not None:
                    self.deliver(call, outputs, output_fds)
                    outputs, output_fds = [], []
                call = one.call
            # A success needs no container id: it would be most of the frame.
            succeeded = result.status in (messages.OK, messages.GENERATOR_DONE)
            outputs.append(
                messages.Output(
                    one.index,
                    result.status,
                    result.data,
                    result.descriptors,
                    "" if succeeded else container.container_id,
                    1 if succeeded else one.attempts + 1,
                )
            )
            output_fds.extend(mine)
        if call is not None:
            self.deliver(call, outputs, output_fds)
        if not container.holds:
            container.idle_since = now
            if self.function.single_use_containers:
                container.stop(EXIT_GRACE, "single use", now)
            else:
                self.scaler.idle(container)
        self.dispatch()

    def _measure(self, container: Container, count: int, now: float) -> None:
        since = self._busy_from.get(container.container_id, now)
        self._busy_from[container.container_id] = now
        elapsed = now - since
        self.app.run_seconds += elapsed
        seconds = elapsed / count if count else elapsed
        self.mean_seconds = seconds if self.mean_seconds is None else 0.7 * self.mean_seconds + 0.3 * seconds

    def _items(self, container: Container, message: messages.RunnerItems, fds: tuple[int, ...]) -> None:
        assignment = container.assignment(message.seq)
        one: Input | None = None if assignment is None else assignment.token
        if one is None or one.call.session is None or one.call.inputs.get(one.index) is not one:
            close_all(fds)
            return
        one.credit -= len(message.items)
        if one.credit < 0:
            close_all(fds)
            why = "it sent items that nobody had asked for"
            error = errors.ContainerCrashedError(
                f"the container of {self.function.name} was ended: {why} ({container.container_id})"
            )
            self.fail(one, error, container.container_id)
            container.kill(why)
            return
        one.call.session.send(
            messages.Items(one.call.call_id, one.index, message.first, message.items, message.descriptors), fds
        )

    def deliver(self, call: Call, outputs: list[messages.Output], fds: list[int]) -> None:
        size = 0
        holding = self.app.holding
        for output in outputs:
            one = call.inputs.pop(output.index)
            size += len(one.data)
            if one.fds:
                close_all(one.fds)
                if one.file is not None:
                    holding.remove_file(one.file)
            if output.status in (messages.EXCEPTION, messages.PLATFORM_ERROR):
                self.app.inputs_failed += 1
                call.failed = True
        self.app.inputs_done += len(outputs)
        if call.session is not None:
            holding.add(-len(outputs), -size)
        if (
            call.flow is not None
            and call.flow.sent(len(outputs), total_size(fds) if fds else 0)
            and self._one_at_a_time
        ):
            # What was handed out ahead would go on filling it.
            for container in self.containers:
                if container.state is State.READY:
                    self.requeue(container.take_back())
        self.server.deliver(call, outputs, fds)

    def fail(self, one: Input, error: errors.FarcallError, container_id: str = "") -> None:
        """Ends one input with an error of the platform."""
        data = failures.encode(error, call_id=one.call.call_id, container_id=container_id)
        attempts = one.attempts + 1 if container_id else 1  # without a container, no attempt ended like this
        output = messages.Output(one.index, messages.PLATFORM_ERROR, data, 0, container_id, attempts)
        self.deliver(one.call, [output], [])

    def _fail_waiting(self, status: int, data: bytes, container_id: str, *, spawned: bool = True) -> None:
        """Ends the inputs that wait; with `spawned=False` those of spawned calls wait on."""
        waiting, self.waiting = self.waiting, deque[Input]()
        for call in self._held:
            waiting.extend(call.flow.let_go() if call.flow is not None else ())
        self._held.clear()
        for one in waiting:
            if not spawned and one.call.backlog is not None:
                self.waiting.append(one)
            elif one.call.inputs.get(one.index) is one:
                self.deliver(one.call, [messages.Output(one.index, status, data, 0, container_id)], [])

    def retry(self, one: Input, container: Container) -> bool:
        """Spends one attempt of the budget on another try, as the last one failed in `container`; False where there is
        none left."""
        policy = self.function.retries
        if one.attempts >= policy.max_retries or one.call.method.is_generator:
            return False
        one.attempts += 1
        one.losses = 0
        one.timed_out = False
        one.container = None
        if one.call.backlog is not None:
            self.server.spawned.retried(one)
        self._delayed += 1
        delay = policy.delay(one.attempts)
        self.server.wait(delay, self._retry_now, one)
        self._tell_retry(one, container, delay)
        return True

    def _tell_retry(self, one: Input, container: Container, delay: float) -> None:
        """A line of log for a retry; of those beyond a few in a second only their number, in the next line."""
        now = self.server.now()
        if now - self._retries_since >= 1.0:
            self._retries_since, self._retries_told = now, 0
        if self._retries_told >= RETRY_LINES:
            self._retries_untold += 1
            return
        others = f" ({self._retries_untold} retries before it were not shown)" if self._retries_untold else ""
        self._retries_told += 1
        self._retries_untold = 0
        attempts = self.function.retries.max_retries + 1
        text = f"attempt {one.attempts} of {attempts} failed; again in {delay:g} s{others}\n"
        self.server.logs.add(container, "system", text, one)

    def _retry_now(self, one: Input) -> None:
        self._delayed -= 1
        if self.app.stopping:
            return
        self.requeue([one])
        self.dispatch()

    def on_taken_back(self, container: Container, tokens: list[Input], blocked_seconds: float | None) -> None:
        """Inputs that have not run, and will not, on the other machine where their container is."""
        if blocked_seconds is not None:
            self.blocked.add(container.container_id)
            self.mean_seconds = max(self.mean_seconds or 0.0, blocked_seconds)
        self.requeue(tokens)
        if not container.holds and container.state is State.READY:
            self.scaler.idle(container)
        self.dispatch()

    def on_timeout(self, token: Input) -> None:
        """An input has run longer than it may; its container is stopping it."""
        token.timed_out = True

    def on_gone(self, container: Container, end: End, started: list[Input], unstarted: list[Input]) -> None:
        self.containers.remove(container)
        loaded = container.ready_at > 0
        goes_elsewhere = not loaded and self.scaler.refused(container, end)
        if not loaded and not goes_elsewhere and end.error is not None:
            end = replace(end, error=self.scaler.all_refusals(end.error))
        self.scaler.gone(container)
        self._busy_from.pop(container.container_id, None)
        self.blocked.discard(container.container_id)
        self.server.forget_container(container, end)
        if not end.reason and not goes_elsewhere:
            self.server.logs.add_system(container, f"container {container.container_id} {end.describe()}\n")
        elif end.lost and started and not self.app.stopping:  # what it printed comes once more
            self.server.logs.add_system(container, f"container {container.container_id} was lost: {end.reason}\n")
        if not loaded and not self.app.stopping and not goes_elsewhere:
            self._start_failed(container, end)
        for one in started:
            if one.call.inputs.get(one.index) is one:
                self._blame(one, container, end)
        self.requeue(unstarted)
        if not self.app.stopping:
            self.dispatch()
        self.server.fleet.schedule()
        self.app.container_gone()

    def _blame(self, one: Input, container: Container, end: End) -> None:
        """An input was running when its container ended."""
        error: errors.FarcallError
        if one.timed_out:
            error = errors.FunctionTimeoutError(
                f"{self.function.name} ran longer than its timeout of {self.function.timeout:g} s and did not stop; "
                f"its container {container.container_id} was replaced"
            )
        elif end.lost or end.reason:
            self.lost(one, container, end.reason or end.describe())
            return
        elif end.exited is not None and end.exited.out_of_memory:
            error = errors.OutOfMemoryError(
                f"{self.function.name} ran out of memory: container {container.container_id} {end.describe()}. "
                "Give it more with memory=(request, limit) in MiB"
            )
        elif end.exited is not None and getattr(end.exited, "disk_exceeded", False):
            error = errors.DiskQuotaError(
                f"{self.function.name} wrote more to its container's disk than its quota; "
                "give it more with ephemeral_disk= in MiB"
            )
        else:
            error = errors.ContainerCrashedError(
                f"{self.function.name} brought its container down: {container.container_id} {end.describe()}. "
                f"See `farcall logs {container.container_id}`"
            )
        if not self.retry(one, container):
            self.fail(one, error, container.container_id)

    def lost(self, one: Input, container: Container, why: str) -> None:
        """Its container went away through no fault of its own: it is tried again, up to `LOSSES` times in a row."""
        one.losses += 1
        if one.losses <= LOSSES and not one.call.method.is_generator:
            self.requeue([one])
            return
        often = f" {one.losses} times in a row" if one.losses > 1 else ""
        said = f"the container of {self.function.name} was lost{often} ({why})"
        self.fail(one, errors.ContainerCrashedError(said), container.container_id)

    def _start_failed(self, container: Container, end: End) -> None:
        """A container ended before it was ready: nobody would ever be served by more of them."""
        if container.reported_error or (end.reason and end.error is None):
            return
        if end.lost or end.killed:
            self.starts_failed += 1
            if self.starts_failed <= LOSSES:
                return
        if end.error is not None:
            error = end.error
        elif end.exited is not None and end.exited.out_of_memory:
            error = errors.OutOfMemoryError(
                f"{self.function.name} ran out of memory while importing: its container {end.describe()}"
            )
        else:
            error = errors.ContainerStartError(
                f"the container of {self.function.name} {end.describe()} while importing {self.function.source.module}"
                f"; see `farcall logs {container.container_id}`"
            )
        # Nothing acknowledged is lost because the disk is full, or no launcher comes up.
        passing = isinstance(error, errors.ResourceExhaustedError | errors.ConnectionError)
        if passing:
            self.scaler.pause(PAUSE_SECONDS, f"no container could be made: {error}")
        if not any(other.state is State.READY for other in self.containers):
            data = failures.encode(error, container_id=container.container_id)
            self._fail_waiting(messages.PLATFORM_ERROR, data, container.container_id, spawned=not passing)

    # --- over time

    def rebalance(self) -> None:
        """Takes back inputs stuck behind a long one, which may even be waiting for them, or behind one that holds up
        the loop: other containers, also new ones, are to run them."""
        now = self.server.now()
        for container in self.containers:
            if container.holds < (1 if self._concurrent else 2) or container.state is not State.READY:
                continue
            age = container.unstarted_seconds(now) if self._concurrent else container.running_seconds(now)
            if age >= STUCK_SECONDS:
                back = container.take_back()
                if back:
                    if self._concurrent:
                        self.blocked.add(container.container_id)
                    self.mean_seconds = max(self.mean_seconds or 0.0, age)
                    self.requeue(back)
        if self.waiting:
            self.dispatch()

    def take_back(self, container: Container) -> None:
        """The container is to end when it has done what it runs: others are to run the rest."""
        self.requeue(container.take_back())
        if not container.holds:
            self.scaler.idle(container)
        self.dispatch()

    def tick(self, now: float) -> None:
        """What time brings: rebalancing and scaling."""
        self.rebalance()
        self.scaler.tick(now)


def _holds(container: Container) -> int:
    return container.holds


def _occupied(container: Container) -> int:
    return container.occupied
