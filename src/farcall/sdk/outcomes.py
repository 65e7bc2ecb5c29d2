"""From what the wire says of an input to a value or an exception."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from farcall import errors
from farcall.sdk import context, exceptions_codec, values
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
        hint = _hint(error)
        if hint:
            error.add_note(hint)
    else:
        error = platform_error(msgspec.msgpack.decode(output.data, type=messages.Failure))
    if output.attempts > 1:
        error.add_note(f"after {output.attempts} attempts")
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


def _hint(error: BaseException) -> str | None:
    """What to do about an exception that has to do with being in a container."""
    if context.container_app_id() is not None:
        return None  # the caller outside says it, of files and modules that the user knows
    if isinstance(error, ModuleNotFoundError):
        from farcall.sdk.source import hint_for_missing_module

        return hint_for_missing_module(error.name) if error.name else None
    if isinstance(error, FileNotFoundError):
        name = error.filename
        if not isinstance(name, (str, bytes)) or not name or not os.path.exists(name):
            return None
        return (
            f"{os.path.abspath(os.fsdecode(name))} is on your machine, and a container does not see it: read it here "
            "and pass its contents as an argument, or add it to the image with .add_local_file(...) or "
            ".add_local_dir(...); farcall.Image.host() is what a function has without one"
        )
    kind = type(error)
    if (kind.__module__, kind.__name__) == ("bdb", "BdbQuit"):
        return "a container has no terminal: for breakpoints run the functions here, with `farcall run --local FILE`"
    # What input() says without standard input.
    if (kind is EOFError and str(error) == "EOF when reading a line") or (
        kind is RuntimeError and str(error).startswith("input(): lost sys.stdin")
    ):
        return "a container has no standard input: ask here and pass the answer, or use `farcall run --local FILE`"
    return None
