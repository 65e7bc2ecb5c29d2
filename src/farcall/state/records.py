"""What the store keeps, as values: apps, calls, inputs, outputs, secrets. Times are seconds since the epoch."""

from typing import Literal, NamedTuple

import msgspec

AppState = Literal["initializing", "ephemeral", "detached", "deployed", "stopping", "stopped"]
CallStatus = Literal["pending", "done", "cancelled"]
InputStatus = Literal["pending", "running", "done", "cancelled"]


class App(msgspec.Struct, frozen=True, kw_only=True):
    """One app. `definition` is opaque here: it holds values of secrets, and is sealed by the store's vault as what
    `schema.definition_of` says. `created_at` and `stopped_at` are stamped by the store."""

    app_id: str
    name: str
    state: AppState = "initializing"
    definition: bytes = b""
    client_pid: int | None = None
    created_at: float = 0.0
    stopped_at: float | None = None


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One spawned call. Everything after `function_name` is stamped and counted by the store.

    `num_finished` counts the inputs that have an output or were cancelled; a call is "done" when that is all of them
    and "cancelled" from `cancel_call` on. `finished_at` is when the last input so far finished. `number` grows in the
    order in which calls were added.
    """

    call_id: str
    app_id: str
    function_id: str
    function_name: str
    created_at: float = 0.0
    status: CallStatus = "pending"
    num_inputs: int = 0
    num_finished: int = 0
    finished_at: float | None = None
    number: int = 0


class Span(NamedTuple):
    """Inputs of the call `number` that stand next to each other: those with indexes from `first` to before `end`."""

    number: int
    first: int
    end: int


class PendingSpan(msgspec.Struct, frozen=True, kw_only=True):
    """Unfinished inputs, and what they are inputs of."""

    app_id: str
    function_id: str
    span: Span


class LoadedInput(msgspec.Struct, frozen=True):
    """One unfinished input, with its payload."""

    call_id: str
    index: int
    payload: bytes
    attempts: int = 0
    losses: int = 0


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a call, without its payload (`size` is the payload's length in bytes).

    `attempts` counts those that spent the retry budget, `losses` those lost in a row through no fault of the function.
    """

    call_id: str
    index: int
    status: InputStatus
    attempts: int
    losses: int
    size: int


class InspectedInput(msgspec.Struct, frozen=True):
    """One input as people look at it. `output` is the status of its output, None where it has none; `failure` the
    payload of that output where the platform ended the input."""

    index: int
    status: InputStatus
    attempts: int
    output: int | None
    finished_at: float | None
    failure: bytes | None


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one input; the meaning of `status` and `payload` is the server's and the client's."""

    call_id: str
    index: int
    status: int
    payload: bytes
    finished_at: float


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """One stored secret: the names of its variables, and `sealed`, opaque here, with their values. The times are
    stamped by the store."""

    name: str
    secret_id: str
    keys: tuple[str, ...]
    sealed: bytes
    created_at: float = 0.0
    updated_at: float = 0.0
