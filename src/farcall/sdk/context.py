"""Where this code runs: in the user's own process or in a container, and for which input."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["current_function_call_id", "current_input_id", "is_local"]

_app_id: str | None = None
_current: ContextVar[tuple[str, int] | None] = ContextVar("farcall_current_input", default=None)


def is_local() -> bool:
    """False in a function's container, from the import of the user's module on; True everywhere else."""
    return _app_id is None


def current_input_id() -> str | None:
    """The id of the input that this code runs for (`in-...`), None outside a container's inputs."""
    current = _current.get()
    return None if current is None else f"in-{current[0].removeprefix('fc-')}-{current[1]}"


def current_function_call_id() -> str | None:
    """The id of the call that this code runs for (`fc-...`), None outside a container's inputs."""
    current = _current.get()
    return None if current is None else current[0]


def enter_container(app_id: str) -> None:
    """Called by the runner before it imports the user's module: from now on `is_local()` is False."""
    global _app_id
    _app_id = app_id


def container_app_id() -> str | None:
    """The app whose container this is, None in a local process."""
    return _app_id


def set_current(call_id: str | None, index: int = 0) -> None:
    """Called by the runner around each input, in the thread or task that runs it; None when the input has ended."""
    _current.set(None if call_id is None else (call_id, index))


def current() -> tuple[str, int] | None:
    """Call id and index of the input that this code runs for."""
    return _current.get()
