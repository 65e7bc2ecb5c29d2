"""`FunctionCall`: a call that goes on by itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any, Generic, TypeVar

from farcall.errors import InvalidError
from farcall.sdk.twin import stream_twin, twin, warn_if_in_loop
from farcall.sdk.unimplemented import later

__all__ = ["FunctionCall"]

R = TypeVar("R", covariant=True)
T = TypeVar("T")


class _Gather:
    """`FunctionCall.gather`: waits for all calls and returns their results in that order, or raises a failure.

    Unlike `twin` it has a type variable of its own, which only a plain method can carry.
    """

    def __call__(self, *function_calls: FunctionCall[T]) -> Sequence[T]:
        warn_if_in_loop("FunctionCall.gather", "await FunctionCall.gather.aio(...)")
        from farcall.sdk import calls

        _check_calls(function_calls)
        return calls.gather([call.object_id for call in function_calls])

    async def aio(self, *function_calls: FunctionCall[T]) -> Sequence[T]:
        """The same, awaited."""
        import asyncio

        _check_calls(function_calls)
        return await asyncio.gather(*(call.get.aio() for call in function_calls))


class FunctionCall(Generic[R]):
    """A handle to a spawned call. It can be passed to other functions, and made again from its id."""

    _display_name = "call"

    def __init__(self, call_id: str, num_inputs: int | None = None) -> None:
        self._call_id = call_id
        self._num_inputs = num_inputs

    @property
    def object_id(self) -> str:
        """The call's id, `fc-...`."""
        return self._call_id

    @classmethod
    def from_id(cls, function_call_id: str, client: Any = None) -> FunctionCall[Any]:
        """A handle to the call with that id; nothing is looked up before it is used."""
        if not isinstance(function_call_id, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidError(
                f"FunctionCall.from_id takes a call's id, a str that starts with fc-, not {function_call_id!r}; "
                "`call.object_id` is the id of a call"
            )
        if not function_call_id.startswith("fc-"):
            raise InvalidError(f"{function_call_id!r} is not a call's id, which starts with fc-")
        return FunctionCall(function_call_id)

    @twin
    def get(self, timeout: float | None = None, *, index: int = 0) -> R:
        """Waits for the result of input `index` and returns it, or raises its exception.

        `timeout` is seconds; 0 only looks. The builtin `TimeoutError` says that there is no result yet;
        `OutputExpiredError` that it was not kept this long.
        """
        from farcall.sdk import calls

        return calls.get_output(self._call_id, _checked_index(index), _checked_timeout(timeout))

    @get.awaited
    async def _get(self, timeout: float | None = None, *, index: int = 0) -> R:
        from farcall.sdk import calls

        return await calls.get_output_async(self._call_id, _checked_index(index), _checked_timeout(timeout))

    @twin
    def cancel(self, terminate_containers: bool = False) -> None:
        """Cancels the call's inputs; with `terminate_containers` their containers end, too."""
        from farcall.sdk import calls

        calls.cancel(self._call_id, terminate_containers)

    @cancel.awaited
    async def _cancel(self, terminate_containers: bool = False) -> None:
        from farcall.sdk import calls

        await calls.cancel_async(self._call_id, terminate_containers)

    @twin
    def num_inputs(self) -> int:
        """How many inputs the call has: 1 for `spawn`. Of a handle made by `from_id` the server is asked."""
        from farcall.sdk import calls

        if self._num_inputs is None:
            self._num_inputs = calls.num_inputs(self._call_id)
        return self._num_inputs

    @num_inputs.awaited
    async def _num_inputs_async(self) -> int:
        from farcall.sdk import calls

        if self._num_inputs is None:
            self._num_inputs = await calls.num_inputs_async(self._call_id)
        return self._num_inputs

    @stream_twin
    def iter(self, *, start: int = 0, end: int | None = None) -> Generator[R, None, None]:
        """The results of the inputs `start` up to, not including, `end`, in order."""
        from farcall.sdk import calls

        count = self._num_inputs if end is not None else self.num_inputs()
        yield from calls.get_outputs(self._call_id, _range(start, end, count))

    @iter.asynchronous
    async def _iter(self, *, start: int = 0, end: int | None = None) -> AsyncGenerator[R, None]:
        from farcall.sdk import calls

        count = self._num_inputs if end is not None else await self._num_inputs_async()
        results = calls.get_outputs_async(self._call_id, _range(start, end, count))
        try:
            async for result in results:
                yield result
        finally:
            await results.aclose()

    @later
    def get_call_graph(self) -> Any:
        """The tree of calls made from this one."""

    @later
    def logs(self) -> Any:
        """What the call's containers printed."""

    gather = _Gather()

    def __reduce__(self) -> tuple[Any, ...]:
        return FunctionCall, (self._call_id, self._num_inputs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionCall) and other._call_id == self._call_id

    def __hash__(self) -> int:
        return hash(self._call_id)

    def __repr__(self) -> str:
        return f"<farcall.FunctionCall {self._call_id}>"


def _range(start: int, end: int | None, count: int | None) -> range:
    """The inputs from `start` to before `end`, of `count` where that is known."""
    stop = end if end is not None else count
    assert stop is not None, "without an end the number of inputs is asked for"
    if not 0 <= start <= stop <= (stop if count is None else count):
        raise ValueError(f"{start} to {end} is outside the call's inputs, 0 to {count}")
    return range(start, stop)


def _check_calls(given: Sequence[Any]) -> None:
    for call in given:
        if not isinstance(call, FunctionCall):
            raise InvalidError(
                f"FunctionCall.gather takes the handles that .spawn returned, not {call!r}; "
                "for a list of them write FunctionCall.gather(*calls)"
            )


def _checked_timeout(timeout: Any) -> float | None:
    """Seconds to wait, None without end."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not hasattr(timeout, "__float__"):
        raise InvalidError(
            f"FunctionCall.get: timeout={timeout!r} is no number; give seconds, 0 to only look, or None to wait"
        )
    seconds = float(timeout)
    if not seconds >= 0:
        raise InvalidError(
            f"FunctionCall.get: timeout={timeout!r} is not 0 or more; give seconds, 0 to only look, or None to wait"
        )
    return None if seconds == float("inf") else seconds


def _checked_index(index: Any) -> int:
    if isinstance(index, bool) or not hasattr(index, "__index__") or index < 0:
        raise InvalidError(f"FunctionCall.get: index={index!r} is not the number of an input, which counts from 0")
    return int(index)
