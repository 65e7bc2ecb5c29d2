"""Maps: many inputs, results in order or as they come, a bounded window between the two.

Inputs are read lazily and at most `WINDOW` of them are ahead of the consumer, so memory stays flat however long the
map is. Large values count by their size: no further inputs are sent while those without a result take `map_memory`, and
the server starts none while results that nobody has taken do. Where the inputs come from containers of the standard
library the consumer's own thread feeds them; any other iterator may block, so a thread (or, for an asynchronous one, a
task) reads it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farcall import errors
from farcall.sdk import calls, context, ids, outcomes, output, values
from farcall.sdk import client as clients
from farcall.wire import descriptors, messages
from farcall.wire.connection import Waiter
from farcall.wire.memory import HeldFiles, total_size

if TYPE_CHECKING:
    import asyncio

WINDOW = 1000  # inputs sent whose results have not been taken
CHUNK_INPUTS = 64  # of one frame
CHUNK_BYTES = 96 * 1024
CHUNK_DESCRIPTORS = 32
CHUNK_MEMORY = 8 * 2**20  # bytes of memory files, from which on a chunk is sent as it is
TOLD_BYTES = 2**20  # of results, after which the server is told that they have been taken
CONTAINER_MEMORY = 256 * 2**20  # bytes; the `map_memory` of maps in containers
FLUSH_SECONDS = 0.005  # how long an input from a thread waits for others to share its frame, while others run
LOOK_SECONDS = 0.02  # how often a consumer that waits looks whether the iterator has ended

# Reading one of these never blocks and never runs the user's code.
_PASSIVE = frozenset(
    {"list", "tuple", "range", "str", "bytes", "set", "frozenset", "dict", "dict_keys", "dict_values", "dict_items"}
)

_Chunk = tuple[list[messages.Input], tuple[int, ...]]


class Chunker:
    """Packs inputs into chunks that fit a frame."""

    def __init__(self, kwargs: Mapping[str, Any]) -> None:
        self._kwargs = kwargs
        self._inputs: list[messages.Input] = []
        self._fds: list[int] = []
        self._size = 0
        self._memory = 0

    def __len__(self) -> int:
        return len(self._inputs)

    def add(self, index: int, args: Sequence[Any]) -> _Chunk | None:
        """Adds one input; returns the chunk where that made it full."""
        data, fds = values.dumps_call(args, self._kwargs)
        self._inputs.append(messages.Input(index, data, len(fds)))
        self._size += len(data)
        if fds:
            self._fds.extend(fds)
            self._memory += total_size(fds)
            if len(self._fds) >= CHUNK_DESCRIPTORS or self._memory >= CHUNK_MEMORY:
                return self.rest()
        if len(self._inputs) < CHUNK_INPUTS and self._size < CHUNK_BYTES:
            return None
        return self.rest()

    def rest(self) -> _Chunk:
        """What has been added since the last full chunk."""
        chunk = self._inputs, tuple(self._fds)
        self._inputs, self._fds, self._size, self._memory = [], [], 0, 0
        return chunk


@dataclass(frozen=True)
class MapStatistics:
    """Where a map stands.

    sent: inputs handed to the server
    received: results that have come
    taken: results the consumer has
    failed: those received that are exceptions
    exhausted: the inputs have been read to their end, so `sent` is the total
    """

    sent: int
    received: int
    taken: int
    failed: int
    exhausted: bool


class MapCall:
    """One map: what has been sent, what has come back, and what the consumer has taken."""

    def __init__(
        self,
        target: calls.Target,
        kwargs: Mapping[str, Any],
        *,
        ordered: bool,
        return_exceptions: bool,
        total: int | None,
    ) -> None:
        self.client = target.client()
        self.target = target
        self.call_id = ids.new_id("fc")
        self.waiter = Waiter()
        self.room = threading.Condition()  # notified when the window has room again, and at the end
        self.closed = False
        self._kwargs = kwargs
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._parent = context.current_input_id() or ""
        self._ready: dict[int, tuple[messages.Output, tuple[int, ...]]] = {}
        self._sent = 0
        self._received = 0
        self._taken = 0
        self._failed = 0
        self._exhausted = False
        self._error: BaseException | None = None
        self._waits = False
        self._window = map_memory(self.client)
        self._large: dict[int, int] = {}  # inputs without a result that have a memory file, and which
        self._files = HeldFiles()
        self._files_lock = threading.Lock()  # guards both: inputs and results come from different threads
        self._has_files = False  # or had
        self._ready_bytes = 0  # of results that nobody has taken
        self._untold = 0  # bytes of results that were taken
        self._wanted = -1  # as the server was told last
        self._progress = output.MapProgressReporter(self.call_id, target.name, total)
        self.client.open_call(self.call_id, self)

    def statistics(self) -> MapStatistics:
        """Where the map stands now."""
        return MapStatistics(self._sent, self._received, self._taken, self._failed, self._exhausted)

    # --- the producer's side

    @property
    def free(self) -> int:
        """How many inputs may be sent now."""
        return WINDOW - (self._sent - self._taken) if self._files.bytes < self._window else 0

    @property
    def runs_low(self) -> bool:
        """Whether inputs should be sent while results are being taken: later, containers would have nothing to do."""
        if self._has_files and self._files.bytes < self._window // 2:
            return True
        return self._sent - self._taken == WINDOW // 2

    @property
    def outstanding(self) -> int:
        """How many inputs have been sent and have no result."""
        return self._sent - self._received

    def chunker(self) -> Chunker:
        return Chunker(self._kwargs)

    def send(self, chunk: _Chunk) -> None:
        """Hands a chunk to the server. Raises ConnectionLostError, which counts the chunks before it."""
        inputs, fds = chunk
        if not inputs or self.closed:
            descriptors.close_all(fds)
            return
        window = 0
        if not self._sent:
            self._progress.update(0, 0)
            window = self._window
        self._sent += len(inputs)
        if fds:
            self._hold(inputs, fds)
        try:
            self.client.connection.send(
                messages.Submit(
                    self.call_id,
                    self.target.function_id,
                    self.target.method,
                    "map",
                    inputs,
                    self.target.params,
                    self._parent,
                    window,
                ),
                fds,
            )
        except errors.ConnectionLostError as error:
            if not error.may_have_run:
                self._sent -= len(inputs)
            if self._sent:
                raise self._lost(error) from error
            raise
        finally:
            if fds:
                descriptors.close_all(fds)

    def _hold(self, inputs: list[messages.Input], fds: tuple[int, ...]) -> None:
        self._has_files = True
        with self._files_lock:
            for one, fd in zip((one for one in inputs if one.descriptors), fds, strict=True):
                self._large[one.index] = self._files.add(fd)

    def _release(self, ended: list[messages.Output]) -> None:
        with self._files_lock:
            for one in ended:
                if (file := self._large.pop(one.index, None)) is not None:
                    self._files.remove(file)

    def exhaust(self) -> None:
        """There are no more inputs."""
        self._exhausted = True
        self._progress.set_total(self._sent)
        self.waiter.set()

    def fail(self, error: BaseException) -> None:
        """The inputs' iterator raised, or an input could not be sent: the consumer gets the error at once."""
        self._error = error
        self.waiter.set()

    # --- the connection's side

    def receive(self, message: Any, fds: tuple[int, ...]) -> None:
        if self.closed:
            descriptors.close_all(fds)
        elif isinstance(message, messages.Outputs):
            if self._waits:
                self._waits = False
                output.call_waits(self.call_id, self.target.name, None)
            self._received += len(message.outputs)
            if self._large:
                self._release(message.outputs)
            if fds:
                position = 0
                self._ready_bytes += total_size(fds)
                for one in message.outputs:
                    self._ready[one.index] = one, fds[position : position + one.descriptors]
                    position += one.descriptors
                    self._failed += one.status != messages.OK
            else:
                for one in message.outputs:
                    self._ready[one.index] = one, ()
                    self._failed += one.status != messages.OK
            self.waiter.set()
        elif isinstance(message, messages.CallWaiting):
            self._waits = True
            output.call_waits(self.call_id, self.target.name, message.reason)

    def lose(self, error: errors.ConnectionLostError) -> None:
        self.fail(self._lost(error))

    def _lost(self, error: errors.ConnectionLostError) -> errors.ConnectionLostError:
        return errors.ConnectionLostError(
            f"{error} during a map of {self.target.name}: {self._taken} results were delivered, "
            f"{self._sent - self._taken} inputs may or may not have run (call {self.call_id})"
        )

    # --- the consumer's side

    def results(self) -> Iterator[Any]:
        """The results that are there now. Raises the first failure, unless exceptions are to be returned."""
        ready = self._ready
        if ready:
            output.drain()
        while ready:
            if self._ordered:
                found = ready.pop(self._taken, None)
                if found is None:
                    break
            else:
                found = ready.pop(next(iter(ready)))
            self._taken += 1
            one, fds = found
            if fds:
                self._take(total_size(fds))
            if one.status == messages.OK:
                value = values.loads(one.data, fds)
            else:
                value = outcomes.failure(self.call_id, one, fds)
                if not self._return_exceptions:
                    raise value
            self._progress.update(self._received, self._failed)
            yield value
        if self._error is not None:
            raise self._error

    def _take(self, size: int) -> None:
        self._ready_bytes -= size
        self._untold += size
        if self._untold >= min(TOLD_BYTES, self._window // 4):
            self._tell(-1)

    def tell_wanted(self) -> None:
        """The consumer is about to wait. Where it keeps so much that the server may have stopped for it, the server is
        told for which result."""
        if self._ordered and self._ready_bytes >= self._window // 2 and self._wanted != self._taken:
            self._tell(self._taken)

    def _tell(self, wanted: int) -> None:
        taken, self._untold, self._wanted = self._untold, 0, wanted
        try:
            self.client.connection.send(messages.Taken(self.call_id, taken, wanted))
        except errors.ConnectionLostError:
            pass  # the consumer is told when it has taken what there is

    @property
    def finished(self) -> bool:
        return self._exhausted and self._taken == self._sent

    def close(self) -> None:
        """Ends the map; what is outstanding is cancelled."""
        self.client.close_call(self.call_id)
        if self._sent and not self.client.connection.closed:
            # Also after a complete map: only this tells the server that no more inputs will come.
            calls.abandon(self.client, self.call_id)
        with self.room:
            self.closed = True
            self.room.notify_all()
        for _, fds in self._ready.values():
            descriptors.close_all(fds)
        self._progress.finish(self._received, self._failed)


def map_memory(client: clients.Client) -> int:
    """How many bytes of inputs, and of results, a map may have on their way."""
    if client.map_memory is None:
        if context.container_app_id() is not None:
            client.map_memory = CONTAINER_MEMORY
        else:
            from farcall.sdk import embedded

            client.map_memory = embedded.program_settings().map_memory
    return client.map_memory


class _InlineFeeder:
    """Feeds from the consumer's own thread, whenever there is room for a whole chunk."""

    patience: float | None = None

    def __init__(self, call: MapCall, inputs: Iterator[Sequence[Any]]) -> None:
        self._call = call
        self._inputs = inputs
        self._chunker = call.chunker()
        self._index = 0
        self._over = False

    def feed(self) -> None:
        call = self._call
        while not self._over and call.free >= CHUNK_INPUTS:
            for args in self._inputs:
                chunk = self._chunker.add(self._index, args)
                self._index += 1
                if chunk is not None:
                    call.send(chunk)
                    break
            else:
                self._over = True
                call.send(self._chunker.rest())
                call.exhaust()


class _ThreadFeeder:
    """Feeds from a thread of its own, since the iterator may block. An input that finds no company is sent on its own,
    whatever iterator and consumer do meanwhile: at once where nothing else runs, else soon, by another thread."""

    def __init__(self, call: MapCall, inputs: Iterator[Sequence[Any]]) -> None:
        self._call = call
        self._inputs = inputs
        self._chunker = call.chunker()
        self._lock = threading.Lock()  # guards the chunker, and the order of sends
        self._flushing = False
        self._over = False
        _start_thread("farcall-map-inputs", self._run)

    def feed(self) -> None:
        with self._call.room:
            self._call.room.notify_all()

    @property
    def patience(self) -> float | None:
        """How long the consumer may wait for results without a look at what the iterator does: while it reads the
        socket, no thread can wake it."""
        return None if self._over else LOOK_SECONDS

    def _run(self) -> None:
        call = self._call
        try:
            for index, args in enumerate(self._inputs):
                with call.room:
                    while call.free <= len(self._chunker) and not call.closed:
                        call.room.wait()
                if call.closed:
                    return
                with self._lock:
                    chunk = self._chunker.add(index, args)
                    if chunk is None and call.outstanding <= 0:
                        chunk = self._chunker.rest()
                    if chunk is not None:
                        call.send(chunk)
                    alone = len(self._chunker) == 1
                if alone:
                    self._flush_soon()
            with self._lock:
                call.send(self._chunker.rest())
            call.exhaust()
        except BaseException as error:
            call.fail(error)
        finally:
            self._over = True
            self.feed()

    def _flush_soon(self) -> None:
        if self._flushing:
            self.feed()
        else:
            self._flushing = True
            _start_thread("farcall-map-flush", self._flush)

    def _flush(self) -> None:
        call = self._call
        while True:
            with call.room:
                while not (len(self._chunker) or self._over or call.closed):
                    call.room.wait()
            if self._over or call.closed:
                return
            time.sleep(FLUSH_SECONDS)
            try:
                with self._lock:
                    call.send(self._chunker.rest())
            except errors.ConnectionLostError as error:
                call.fail(error)
                return


def _start_thread(name: str, work: Callable[[], None]) -> None:
    # A program must be able to end though its iterator never returns.
    threading.Thread(target=work, name=name, daemon=True).start()


class _TaskFeeder:
    """Feeds from a task, for asynchronous iterables."""

    def __init__(self, call: MapCall, inputs: AsyncIterator[Sequence[Any]]) -> None:
        import asyncio

        self._call = call
        self._inputs = inputs
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] = asyncio.get_running_loop().create_task(self._run())

    def feed(self) -> None:
        if self._call.free > 0:
            self._room.set()

    async def _run(self) -> None:
        call, index = self._call, 0
        chunker = call.chunker()
        try:
            async for args in self._inputs:
                while call.free <= 0:
                    self._room.clear()
                    await self._room.wait()
                chunker.add(index, args)
                call.send(chunker.rest())
                index += 1
            call.exhaust()
        except Exception as error:
            call.fail(error)

    def cancel(self) -> None:
        self._task.cancel()


def _prepare(
    target: calls.Target,
    iterables: Sequence[Any],
    kwargs: Mapping[str, Any],
    ordered: bool,
    return_exceptions: bool,
    star: bool,
) -> tuple[MapCall, Callable[[MapCall], _InlineFeeder | _ThreadFeeder]]:
    for iterable in iterables:
        if not hasattr(iterable, "__iter__"):
            raise errors.InvalidError(
                f"{target.name}.map takes iterables, one for each argument, and was given a {type(iterable).__name__}; "
                f"use {target.name}.remote for a single input"
                if not hasattr(iterable, "__aiter__")
                else f"an asynchronous iterable needs `async for ... in {target.name}.map.aio(...)`"
            )
    lengths = [len(iterable) for iterable in iterables if hasattr(iterable, "__len__")]
    total = min(lengths) if len(lengths) == len(iterables) and lengths else None
    passive = all(
        type(iterable).__module__ == "builtins" and type(iterable).__name__ in _PASSIVE for iterable in iterables
    )
    inputs: Iterator[Sequence[Any]] = (tuple(item) for item in iterables[0]) if star else zip(*iterables, strict=False)
    call = MapCall(target, kwargs, ordered=ordered, return_exceptions=return_exceptions, total=total)
    return call, lambda call: (_InlineFeeder if passive else _ThreadFeeder)(call, inputs)


def run(
    target: calls.Target,
    iterables: Sequence[Iterable[Any]],
    kwargs: Mapping[str, Any],
    ordered: bool,
    return_exceptions: bool,
    star: bool,
) -> Generator[Any]:
    """Results as the map yields them to a thread."""
    call, make_feeder = _prepare(target, iterables, kwargs, ordered, return_exceptions, star)
    try:
        feeder = make_feeder(call)
        while True:
            call.waiter.clear()
            feeder.feed()
            for value in call.results():
                yield value
                if call.runs_low:
                    feeder.feed()
            if call.finished:
                return
            feeder.feed()
            call.tell_wanted()
            call.client.connection.wait(call.waiter, feeder.patience)
    finally:
        call.close()


async def run_async(
    target: calls.Target,
    iterables: Sequence[Any],
    kwargs: Mapping[str, Any],
    ordered: bool,
    return_exceptions: bool,
    star: bool,
) -> AsyncGenerator[Any]:
    """Results as the map yields them to a task."""
    feeder: _InlineFeeder | _ThreadFeeder | _TaskFeeder
    if any(hasattr(iterable, "__aiter__") for iterable in iterables):
        call = MapCall(target, kwargs, ordered=ordered, return_exceptions=return_exceptions, total=None)
        feeder = _TaskFeeder(call, zip_async(iterables, star))
    else:
        call, make_feeder = _prepare(target, iterables, kwargs, ordered, return_exceptions, star)
        feeder = make_feeder(call)
    try:
        while True:
            call.waiter.clear()
            feeder.feed()
            for value in call.results():
                yield value
                if call.runs_low:
                    feeder.feed()
            if call.finished:
                return
            feeder.feed()
            call.tell_wanted()
            await call.client.connection.wait_async(call.waiter)
    finally:
        if isinstance(feeder, _TaskFeeder):
            feeder.cancel()
        call.close()


async def zip_async(iterables: Sequence[Any], star: bool) -> AsyncGenerator[Sequence[Any]]:
    """The arguments of one input after another, from iterables of which some are asynchronous."""
    iterators = [aiter(iterable) if hasattr(iterable, "__aiter__") else iter(iterable) for iterable in iterables]
    while True:
        args: list[Any] = []
        for iterator in iterators:
            try:
                args.append(await anext(iterator) if hasattr(iterator, "__anext__") else next(iterator))
            except (StopIteration, StopAsyncIteration):
                return
        yield tuple(args[0]) if star else args
