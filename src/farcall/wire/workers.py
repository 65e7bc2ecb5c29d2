"""Messages about the workers of a server: what programs ask, and what a worker says before it is linked to it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from farcall.wire.message import Message

NO_PEERS = -1  # in place of a port: a worker that knows nothing of others

# --- what programs ask -----------------------------------------------------------------------------------------------


class CreateWorkerToken(Message, tag=170):
    """Make a token that workers join with, for so many seconds. `address` is what they connect to, "" for that of the
    server's setting. Answer: Done, body a WorkerToken."""

    seq: int
    label: str = ""
    lifetime: Annotated[float, msgspec.Meta(gt=0)] = 86400.0
    address: str = ""


class ListWorkerTokens(Message, tag=171):
    """Answer: Done, body a list of TokenListing."""

    seq: int


class RevokeWorkerToken(Message, tag=172):
    """Nobody joins with this token any more; workers that have stay. Answer: Done."""

    seq: int
    token_id: str


class ListWorkers(Message, tag=173):
    """Answer: Done, body a list of WorkerListing."""

    seq: int


class DrainWorker(Message, tag=174):
    """A worker, by name or id, gets no further containers; those that it has end when they are idle, and inputs that
    run there finish. With `undo` it is as others again. Answer: Done, once nothing runs there; Failed with `conflict`,
    where that is undone before."""

    seq: int
    worker: str
    undo: bool = False


class RemoveWorker(Message, tag=175):
    """Forget a worker, and refuse its certificate from now on. One that has containers is refused without `force`,
    with which they are lost. Answer: Done."""

    seq: int
    worker: str
    force: bool = False


class WorkerToken(msgspec.Struct):
    """Body of the answer to CreateWorkerToken. `token` is shown once."""

    token_id: str
    token: str
    expires_at: float


class TokenListing(msgspec.Struct):
    """Times are seconds since the epoch. `state` is "valid", "expired" or "revoked"."""

    token_id: str
    label: str
    created_at: float
    expires_at: float
    state: str
    joined: int  # workers


class WorkerListing(msgspec.Struct):
    """A worker. `state` is "ready", "silent" (its lease runs), "draining", "away", or "local" for the server's own.
    Memory and disk are MiB. `region` and `labels` of one that is away are those it had."""

    worker_id: str
    name: str
    state: str
    address: str = ""
    region: str = ""
    labels: dict[str, str] = {}
    version: str = ""
    containers: int = 0
    cores: float = 0.0
    memory: int = 0
    free_memory: int = 0
    gpus: dict[str, int] = {}
    joined_at: float = 0.0  # seconds since the epoch
    clock_offset: float = 0.0  # seconds that its clock is ahead of the server's
    peer_port: int = NO_PEERS  # where it gives content to other workers, at its address; 0 for nowhere


# --- before the link -------------------------------------------------------------------------------------------------


class Offer(msgspec.Struct, frozen=True):
    """What a worker has for containers: millicores, MiB; GPUs of each type by their numbers, and the MiB of one."""

    cpu: int
    memory: int
    disk: int
    gpus: tuple[tuple[str, tuple[int, ...], int], ...] = ()
    cpu_overcommit: float = 1.0


class Enroll(Message, tag=180):
    """Give me a certificate. `request` is a certificate signing request, in PEM, for a key that stays with the
    worker. Answer: Enrolled, or Failed."""

    protocol: int
    version: str
    token_id: str
    secret: str
    name: str
    request: bytes


class Enrolled(Message, tag=181):
    """The certificate of a new worker, in PEM."""

    worker_id: str
    certificate: bytes


class Attach(Message, tag=182):
    """The worker whose certificate this connection has is here. `session` names its containers: with `resumes` it goes
    on with those of an earlier connection. Answer: Attached, after which the connection is a link, or Failed."""

    protocol: int
    version: str
    session: bytes
    resumes: bool
    name: str
    region: str
    labels: dict[str, str]
    offer: Offer
    clock: float  # seconds since the epoch
    peer_port: int = NO_PEERS  # where it gives content to other workers; 0 for nowhere


class Attached(Message, tag=183):
    """Welcome. Within `lease` seconds without an answer to a Heartbeat, counted from when that was sent, the worker has
    to end its containers."""

    protocol: int
    version: str
    server_id: str
    lease: float
    clock: float


class Greet(Message, tag=184):
    """Who are you? Answer: Greeting."""


class Greeting(Message, tag=185):
    """The certificate of the server's authority, in PEM. It is believed where its fingerprint is the token's."""

    certificate: bytes


Opening = Greet | Enroll | Attach
"""What a connection to the workers' port begins with."""
