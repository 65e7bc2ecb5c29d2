"""Messages of tests to a server that was started for one (FARCALL_TESTING=1), program to server; any other refuses
them. Times are seconds on the server's clock."""

from typing import Literal

import msgspec

from farcall.wire.message import Message


class AdvanceClock(Message, tag=150):
    """Let time pass for apps: windows, delays, timeouts. Answer: Done, body a TestReport without names."""

    seq: int
    seconds: float


class InjectFault(Message, tag=151):
    """Have the next attempts of a function's or method's inputs suffer something.

    `kind`: "raise" has them fail with `error`, an exception as a container would send it, and with `ends_container` the
    container goes; "lose" ends the container through no fault of the function; "slow" lets `seconds` pass first. With
    `after` it happens when the user's code has run. Answer: Done.
    """

    seq: int
    function_id: str
    method: str
    kind: Literal["raise", "lose", "slow"]
    times: int = 1
    after: bool = False
    seconds: float = 0.0
    error: bytes = b""
    ends_container: bool = False


class GetTestReport(Message, tag=152):
    """Ask how a test's app fares. Answer: Done, body a TestReport."""

    seq: int
    app_id: str


class TestReport(msgspec.Struct):
    """What has become of an app under test."""

    now: float  # on the server's clock
    starts: dict[str, int] = {}  # containers, by function or class
    left: dict[str, int] = {}  # faults that have met no attempt, by function or method
