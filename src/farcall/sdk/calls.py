"""Calls: one input, one result. Maps and generators have rooms of their own; this is also where they are reached.

Every function here has an awaited twin. In local mode (`farcall run --local`) all of them run in this process.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from farcall import errors
from farcall.sdk import client as clients
from farcall.sdk import context, ids, local, outcomes, output, values
from farcall.wire import descriptors, messages
from farcall.wire.connection import Waiter
from farcall.wire.inspection import CallDetails, GetCall

CHUNKS_AHEAD = 4  # of a spawn_map, sent and not acknowledged: enough to share commits, few enough to wait behind
OUTPUTS_AHEAD = 64  # asked for and not taken, of those who iterate over a call's results


class Target(NamedTuple):
    """What is called: a function, or a method of a class with these parameters. `name` is for messages to people;
    `variant` is what the server must have been told before."""

    function_id: str
    method: str
    params: bytes
    name: str
    variant: messages.AddVariant | None = None

    def client(self) -> clients.Client:
        """This process's client, by which the server knows what is called."""
        client = clients.current()
        if self.variant is not None:
            client.announce(self.variant)
        return client


class _OneCall:
    """A call with one input whose result is awaited here."""

    __slots__ = ("call_id", "error", "fds", "name", "output", "waiter", "waits")

    def __init__(self, call_id: str, name: str) -> None:
        self.call_id = call_id
        self.name = name
        self.waiter = Waiter()
        self.output: messages.Output | None = None
        self.fds: tuple[int, ...] = ()
        self.error: errors.ConnectionLostError | None = None
        self.waits = False

    def receive(self, message: Any, fds: tuple[int, ...]) -> None:
        if isinstance(message, messages.Outputs):
            self.output, self.fds = message.outputs[0], fds
            self.waiter.set()
        elif isinstance(message, messages.CallWaiting):
            self.waits = True
            output.call_waits(self.call_id, self.name, message.reason)

    def lose(self, error: errors.ConnectionLostError) -> None:
        self.error = error
        self.waiter.set()

    def result(self) -> Any:
        if self.waits:
            output.call_waits(self.call_id, self.name, None)
        output.drain()
        if self.output is None:
            raise errors.ConnectionLostError(
                f"{self.error} while {self.name} was running; it may have run (call {self.call_id}). "
                "See `farcall server logs`; use .spawn for calls that must survive this"
            )
        return outcomes.decode(self.call_id, self.output, self.fds)


def submit(
    target: Target,
    kind: Literal["remote", "generator"],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    call_id: str,
    receiver: clients.Receiver,
) -> clients.Client:
    """Sends a call's one input and returns the client, which hands its messages to `receiver` until `close_call`."""
    payload = values.dumps_call(args, kwargs)
    fds = payload.fds
    message = messages.Submit(
        call_id,
        target.function_id,
        target.method,
        kind,
        [messages.Input(0, payload.data, len(fds))],
        target.params,
        context.current_input_id() or "",
    )
    client = target.client()
    client.open_call(call_id, receiver)
    try:
        try:
            client.connection.send(message, fds)
        finally:
            if fds:
                descriptors.close_all(fds)
    except BaseException:
        abandon(client, call_id)  # a signal's handler (Ctrl-C) may have raised when it had gone
        client.close_call(call_id)
        raise
    return client


def abandon(client: clients.Client, call_id: str) -> None:
    """The caller gives up: the server is told, where it can be."""
    try:
        client.connection.send(messages.CancelCall(0, call_id))
    except errors.ConnectionLostError:
        pass  # with the connection the server cancels what is ours


def remote(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs one input and returns its result."""
    if local.is_active():
        return local.remote(target, args, kwargs)
    call_id = ids.new_id("fc")
    call = _OneCall(call_id, target.name)
    client = submit(target, "remote", args, kwargs, call_id, call)
    try:
        client.connection.wait(call.waiter)
    except BaseException:
        abandon(client, call_id)
        raise
    finally:
        client.close_call(call_id)
    return call.result()


async def remote_async(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`remote`, awaited; cancelling the task cancels the input."""
    if local.is_active():
        return await local.remote_async(target, args, kwargs)
    call_id = ids.new_id("fc")
    call = _OneCall(call_id, target.name)
    client = submit(target, "remote", args, kwargs, call_id, call)
    try:
        await client.connection.wait_async(call.waiter)
    except BaseException:
        abandon(client, call_id)
        raise
    finally:
        client.close_call(call_id)
    return call.result()


# --- spawned calls


def _spawn_message(target: Target, call_id: str, inputs: list[messages.Input]) -> Callable[[int], messages.Spawn]:
    parent = context.current_input_id() or ""

    def make(seq: int) -> messages.Spawn:
        return messages.Spawn(seq, call_id, target.function_id, target.method, inputs, target.params, parent)

    return make


def spawn(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Records one input durably and returns the call's id; the result is fetched with `get_output`."""
    if local.is_active():
        return local.spawn(target, [(args, kwargs)])
    call_id = ids.new_id("fc")
    payload = values.dumps_call(args, kwargs)
    try:
        make = _spawn_message(target, call_id, [messages.Input(0, payload.data, len(payload.fds))])
        target.client().request(make, payload.fds)
    finally:
        descriptors.close_all(payload.fds)
    return call_id


async def spawn_async(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """`spawn`, awaited."""
    if local.is_active():
        return local.spawn(target, [(args, kwargs)])
    call_id = ids.new_id("fc")
    payload = values.dumps_call(args, kwargs)
    try:
        make = _spawn_message(target, call_id, [messages.Input(0, payload.data, len(payload.fds))])
        await target.client().request_async(make, payload.fds)
    finally:
        descriptors.close_all(payload.fds)
    return call_id


def spawn_map(target: Target, iterables: Sequence[Iterable[Any]], kwargs: Mapping[str, Any]) -> tuple[str, int]:
    """Records one input for each item of the zipped iterables, durably, as one call; returns its id and how many."""
    inputs = zip(*iterables, strict=False)
    if local.is_active():
        every = list(inputs)
        return local.spawn(target, [(args, kwargs) for args in every]), len(every)
    from farcall.sdk.maps import Chunker

    call_id = ids.new_id("fc")
    client = target.client()
    chunker = Chunker(kwargs)
    under_way: deque[clients.Request] = deque()
    count = sent = 0

    def send(chunk: tuple[list[messages.Input], tuple[int, ...]]) -> None:
        nonlocal sent
        inputs, fds = chunk
        if not inputs:
            return
        # The first chunk makes the call; those after it are on their way together, so that they share commits.
        while under_way and (sent == 1 or len(under_way) >= CHUNKS_AHEAD):
            under_way.popleft().wait()
        try:
            under_way.append(client.start(_spawn_message(target, call_id, inputs), fds))
        except errors.ConnectionLostError as error:
            error.may_have_run |= sent > 0  # of this chunk nothing, of those before it all
            raise
        finally:
            descriptors.close_all(fds)
        sent += 1

    try:
        for args in inputs:
            chunk = chunker.add(count, args)
            count += 1
            if chunk is not None:
                send(chunk)
        send(chunker.rest())
        while under_way:
            under_way.popleft().wait()
    finally:
        for request in under_way:
            request.drop()
    return call_id, count


def get_output(call_id: str, index: int, timeout: float | None) -> Any:
    """The result of one input of a spawned call.

    Raises the builtin TimeoutError where it is not there within `timeout` seconds (0: now), OutputExpiredError,
    NotFoundError, or what the function raised.
    """
    if local.is_active():
        return local.get_output(call_id, index)
    answer, fds = clients.current().request(_ask(call_id, index, timeout))
    return _got(call_id, answer, fds, timeout)


async def get_output_async(call_id: str, index: int, timeout: float | None) -> Any:
    """`get_output`, awaited."""
    if local.is_active():
        return local.get_output(call_id, index)
    answer, fds = await clients.current().request_async(_ask(call_id, index, timeout))
    return _got(call_id, answer, fds, timeout)


class _Ahead:
    """Requests for the results of a call's inputs, one after another, asked for ahead of whoever takes them: more and
    more while the results are small, and one at a time where they are memory files."""

    def __init__(self, call_id: str, indexes: Iterable[int]) -> None:
        self._call_id = call_id
        self._indexes = iter(indexes)
        self._client = clients.current()
        self._sent: deque[clients.Request] = deque()
        self._limit = 1

    def next(self) -> clients.Request | None:
        """The next request; None where there are no more inputs."""
        for index in itertools.islice(self._indexes, max(0, self._limit - len(self._sent))):
            self._sent.append(self._client.start(_ask(self._call_id, index)))
        return self._sent.popleft() if self._sent else None

    def result(self, answer: Any, fds: tuple[int, ...]) -> Any:
        """The result in the answer to it."""
        self._limit = 1 if fds else min(2 * self._limit, OUTPUTS_AHEAD)
        return _got(self._call_id, answer, fds, None)

    def close(self) -> None:
        """Nobody takes more of them."""
        for request in self._sent:
            request.drop()


def get_outputs(call_id: str, indexes: Sequence[int]) -> Generator[Any]:
    """`get_output` of one input after another."""
    if local.is_active():
        for index in indexes:
            yield local.get_output(call_id, index)
        return
    ahead = _Ahead(call_id, indexes)
    try:
        while (request := ahead.next()) is not None:
            yield ahead.result(*request.wait())
    finally:
        ahead.close()


async def get_outputs_async(call_id: str, indexes: Sequence[int]) -> AsyncGenerator[Any]:
    """`get_outputs`, awaited."""
    if local.is_active():
        for index in indexes:
            yield local.get_output(call_id, index)
        return
    ahead = _Ahead(call_id, indexes)
    try:
        while (request := ahead.next()) is not None:
            yield ahead.result(*await request.wait_async())
    finally:
        ahead.close()


def _ask(call_id: str, index: int, timeout: float | None = None) -> Callable[[int], messages.GetOutput]:
    return lambda seq: messages.GetOutput(seq, call_id, index, timeout)


def num_inputs(call_id: str) -> int:
    """How many inputs a spawned call has. Raises NotFoundError and OutputExpiredError."""
    answer, _ = clients.current().request(lambda seq: GetCall(seq, call_id, 0, 0))
    return msgspec.msgpack.decode(answer.body, type=CallDetails).call.inputs


async def num_inputs_async(call_id: str) -> int:
    """`num_inputs`, awaited."""
    answer, _ = await clients.current().request_async(lambda seq: GetCall(seq, call_id, 0, 0))
    return msgspec.msgpack.decode(answer.body, type=CallDetails).call.inputs


def gather(call_ids: Sequence[str]) -> list[Any]:
    """The results of spawned calls with one input each, in that order. Raises a failure as soon as it is there."""
    if local.is_active():
        return [local.get_output(call_id, 0) for call_id in call_ids]
    results: list[Any] = [None] * len(call_ids)
    answers = clients.current().request_each([_ask(call_id, 0) for call_id in call_ids])
    try:
        for position, answer, fds in answers:
            results[position] = _got(call_ids[position], answer, fds, None)
    finally:
        answers.close()
    return results


def _got(call_id: str, answer: Any, fds: tuple[int, ...], timeout: float | None) -> Any:
    if isinstance(answer, messages.Pending):
        raise errors.TimeoutError(
            f"call {call_id} has no result yet, after {timeout:g} s" if timeout else f"call {call_id} has no result yet"
        )
    output.drain()
    return outcomes.decode(call_id, answer.outputs[0], fds)


def cancel(call_id: str, terminate_containers: bool) -> None:
    """Cancels all inputs of a call that have no result yet."""
    if local.is_active():
        return
    clients.current().request(lambda seq: messages.CancelCall(seq, call_id, None, terminate_containers))


async def cancel_async(call_id: str, terminate_containers: bool) -> None:
    """`cancel`, awaited."""
    if local.is_active():
        return
    await clients.current().request_async(lambda seq: messages.CancelCall(seq, call_id, None, terminate_containers))


# --- maps and generators


def map_(
    target: Target,
    iterables: Sequence[Iterable[Any]],
    kwargs: Mapping[str, Any],
    order_outputs: bool,
    return_exceptions: bool,
    star: bool = False,
) -> Generator[Any]:
    """The results of one input for each item of the zipped iterables (`star`: of the items of the one iterable,
    unpacked)."""
    if local.is_active():
        return local.map_(target, iterables, kwargs, return_exceptions, star)
    from farcall.sdk import maps

    return maps.run(target, iterables, kwargs, order_outputs, return_exceptions, star)


def map_async(
    target: Target,
    iterables: Sequence[Any],
    kwargs: Mapping[str, Any],
    order_outputs: bool,
    return_exceptions: bool,
    star: bool = False,
) -> AsyncGenerator[Any]:
    """`map_` for event loops; takes asynchronous iterables too."""
    if local.is_active():
        return local.map_async(target, iterables, kwargs, return_exceptions, star)
    from farcall.sdk import maps

    return maps.run_async(target, iterables, kwargs, order_outputs, return_exceptions, star)


def remote_gen(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Generator[Any]:
    """The items of a remote generator, as they come. Closing the iterator closes the generator."""
    if local.is_active():
        return local.remote_gen(target, args, kwargs)
    from farcall.sdk import generators

    return generators.run(target, args, kwargs)


def remote_gen_async(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AsyncGenerator[Any]:
    """`remote_gen` for event loops."""
    if local.is_active():
        return local.remote_gen_async(target, args, kwargs)
    from farcall.sdk import generators

    return generators.run_async(target, args, kwargs)
