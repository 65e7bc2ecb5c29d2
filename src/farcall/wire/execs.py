"""Messages about commands in containers. A container may send none of them."""

from typing import Annotated, Literal

import msgspec

from farcall.wire.message import Message

EXEC_WINDOW = 128 * 1024  # bytes of input that may be on their way to a command

TerminalSide = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


class ExecCommand(Message, tag=120):
    """Run a command in a container, on a terminal of (rows, columns) or without one. Answer: ExecOutput and ExecTaken
    messages, then Done once it has ended, body an ExecEnd. It ends with the connection."""

    seq: int
    container_id: str
    command: list[str]
    environment: dict[str, str] = {}  # over the container's
    workdir: str = ""  # "": the container's
    terminal: tuple[TerminalSide, TerminalSide] | None = None


class ExecInput(Message, tag=121):
    """More of the input of the ExecCommand of number `command`; with `end` there is no more after it. At most
    EXEC_WINDOW bytes that no ExecTaken has answered."""

    command: int
    data: bytes
    end: bool = False


class ExecResize(Message, tag=122):
    """The terminal of the ExecCommand of number `command` has another size."""

    command: int
    rows: TerminalSide
    columns: TerminalSide


class ExecSignal(Message, tag=123):
    """Send a signal to the ExecCommand of number `command`, and to all in its process group."""

    command: int
    signal: int


class ExecOutput(Message, tag=124):
    """What a command has written. On a terminal all of it is "stdout"."""

    seq: int
    stream: Literal["stdout", "stderr"]
    data: bytes


class ExecTaken(Message, tag=125):
    """The command has taken `size` bytes of its input, or never will."""

    seq: int
    size: int


class ExecEnd(msgspec.Struct):
    """Body of the answer to ExecCommand; exactly one of the two is set."""

    exit_code: int | None
    signal: int | None
