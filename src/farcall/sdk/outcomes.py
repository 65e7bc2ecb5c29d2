"""From what the wire says of an input to a value or an exception."""

from __future__ import annotations

from typing import Any

import msgspec

from farcall import errors
from farcall.sdk import exceptions_codec, values
from farcall.wire import messages


def decode(call_id: str, output: messages.Output, fds: tuple[int, ...]) -> Any:
    """The result of an input. Raises what its function raised, or the error of the platform."""
    if output.descriptors > len(fds):
        raise errors.ResourceExhaustedError(
            f"the result of call {call_id} was lost on its way: this process has too many open files. Raise its limit "
            "(ulimit -n), or take results one by one instead of keeping them"
        )
    if output.status == messages.OK or output.status == messages.GENERATOR_DONE:
        return values.loads(output.data, fds)
    raise failure(call_id, output, fds)


def failure(call_id: str, output: messages.Output, fds: tuple[int, ...]) -> BaseException:
    """The exception of an input that failed, with `farcall_call_id` and `farcall_container_id` set."""
    if output.status == messages.EXCEPTION:
        error = exceptions_codec.load_exception(output.data, fds)
        if isinstance(error, ModuleNotFoundError) and error.name:
            _add_hint(error, error.name)
    else:
        error = platform_error(msgspec.msgpack.decode(output.data, type=messages.Failure))
    # Not every class takes new attributes; the ids help people only.
    for name, value in (("farcall_call_id", call_id), ("farcall_container_id", output.container_id)):
        try:
            setattr(error, name, value)
        except (AttributeError, TypeError):
            pass
    return error


def platform_error(failed: messages.Failure) -> errors.FarcallError:
    """The typed error that a Failure stands for."""
    error = errors.from_code(failed.code, failed.message)
    if isinstance(error, errors.ConnectionLostError):
        error.may_have_run = failed.may_have_run
    return error


def _add_hint(error: ModuleNotFoundError, module: str) -> None:
    from farcall.sdk.source import hint_for_missing_module

    hint = hint_for_missing_module(module)
    if hint:
        error.add_note(hint)
