"""What a pool wants of the scheduler, and the containers that it was given room for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from farcall.server.resources import Amounts

if TYPE_CHECKING:
    from farcall.server.resources import GpuChoice, Request
    from farcall.server.room import Claim, WorkerRoom


class Demand:
    """The containers of one pool: those it has, and those it wants. Only the scheduler changes it.

    `owner` is whoever asks, for whom it stands.
    """

    __slots__ = (
        "app",
        "barred",
        "claim",
        "floor",
        "for_inputs",
        "held",
        "live",
        "missing",
        "name",
        "owner",
        "patience",
        "request",
        "since",
        "tried_at",
    )

    def __init__(self, app: AppUsage, name: str, request: Request, owner: Any, patience: float) -> None:
        self.app = app
        self.name = name
        self.request = request
        self.owner = owner
        self.missing = 0  # containers that it wants
        self.for_inputs = 0  # of these: for inputs that wait
        self.floor = 0  # so many of its containers are nobody's to end
        self.live = 0  # containers that it has and that are to stay
        self.held = Amounts()  # what these hold
        self.since = 0.0  # when it last got one, or began to want one
        self.patience = patience  # seconds after `since` that busy containers of others are ended for it
        self.tried_at = 0.0  # when that was last tried
        self.claim: Claim | None = None
        self.barred = 0  # workers that would not have it, as bits


class AppUsage:
    """An app's part of all there is, its demands, and those that are not met, taken in turn."""

    __slots__ = ("all", "app_id", "held", "name", "unmet")

    def __init__(self, app_id: str, name: str) -> None:
        self.app_id = app_id
        self.name = name
        self.held = Amounts()
        self.all: dict[Demand, None] = {}
        self.unmet: dict[Demand, None] = {}


class Placement:
    """Room for one container on one worker, from when it is given until nothing of the container is left."""

    __slots__ = ("demand", "gpu", "gpus", "is_leaving", "is_made", "is_ready", "is_retiring", "since", "worker")

    def __init__(self, demand: Demand, worker: WorkerRoom, gpu: GpuChoice, gpus: tuple[int, ...], since: float) -> None:
        self.demand = demand
        self.worker = worker
        self.gpu = gpu
        self.gpus = gpus  # their numbers on the worker
        self.since = since  # when it was given
        self.is_made = False
        self.is_ready = False  # to run inputs
        self.is_leaving = False  # it is being ended
        self.is_retiring = False  # it is to be ended when it has done what it runs

    @property
    def request(self) -> Request:
        """What the container holds."""
        return self.demand.request

    @property
    def worker_id(self) -> str:
        """Where it is."""
        return self.worker.worker_id
