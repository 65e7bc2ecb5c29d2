"""Messages about the containers that functions have. A container may send them about its own app."""

import msgspec

from farcall.wire.message import Message


class UpdateAutoscaler(Message, tag=110):
    """Change bounds of a function's pool of containers, of a class's with these parameters, until its app is deployed
    again. `changes` are fields of Scaling, each with its value or None for the default; without any it only asks.
    Answer: Done, body the Scaling that holds then."""

    seq: int
    function_id: str
    params: bytes = b""
    changes: dict[str, float | int | None] = {}


class PoolStats(Message, tag=111):
    """Ask what a pool of containers has to do. Answer: Done, body a PoolStatistics."""

    seq: int
    function_id: str
    params: bytes = b""


class PoolStatistics(msgspec.Struct, frozen=True):
    """What a pool of containers has to do, and what it has to do it with."""

    backlog: int = 0  # inputs that wait for a container
    num_total_runners: int = 0  # containers that serve or are being started
    num_running_inputs: int = 0  # inputs that containers have been given
    input_headroom: int = 0  # inputs that the containers could take now
