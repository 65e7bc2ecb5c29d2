"""The workers that a server knows: those that have joined, and have not been removed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from farcall import errors
from farcall.cluster.authority import write_private

REGISTRY = "workers.json"  # the file, in a server's directory for its workers
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
LOCAL = "local"  # the server's own worker
_MOST_LABELS = 64
_LONGEST = 128  # characters of a region, a label's name or its value
_SHOWN = 60  # of one that cannot be used


class KnownWorker(msgspec.Struct, frozen=True):
    """One worker; `region` and `labels` are those of its last session. Times are seconds since the epoch."""

    worker_id: str
    name: str
    joined_at: float
    is_draining: bool = False
    region: str = ""
    labels: dict[str, str] = {}

    @property
    def places(self) -> list[str]:
        """The words by which functions can ask for it."""
        return [self.region] * bool(self.region) + [f"{name}={value}" for name, value in self.labels.items()]


class Registry:
    """In a file; names are unique. What cannot be written has not happened: all that change it raise what
    `disk_error` says."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._workers: dict[str, KnownWorker] = {}
        if path.exists():
            found = msgspec.json.decode(path.read_bytes(), type=list[KnownWorker])
            self._workers = {one.worker_id: one for one in found}

    @property
    def workers(self) -> list[KnownWorker]:
        """All, in the order in which they joined."""
        return list(self._workers.values())

    def get(self, worker_id: str) -> KnownWorker | None:
        """The worker of that id."""
        return self._workers.get(worker_id)

    def find(self, worker: str) -> KnownWorker:
        """The worker of that name or id. Raises NotFoundError."""
        for one in self._workers.values():
            if worker in (one.name, one.worker_id):
                return one
        names = ", ".join(sorted(one.name for one in self._workers.values())) or "none"
        if worker == LOCAL:
            raise errors.NotFoundError(
                f"{LOCAL!r} is the server's own worker, which is there unless the server is started with "
                "`farcall server start --no-own-worker`"
            )
        raise errors.NotFoundError(f"there is no worker {worker!r}; those that have joined: {names}")

    def make(self, name: str, now: float) -> KnownWorker:
        """A new worker, which is none of ours before it is added. Raises InvalidError for a name that is none, and
        AlreadyExistsError for one that is taken."""
        self.check_name(name)
        return KnownWorker(f"wk-{os.urandom(8).hex()}", name, now)

    def add(self, worker: KnownWorker) -> None:
        """It is one of ours."""
        self._keep(self._workers | {worker.worker_id: worker})

    def rename(self, worker: KnownWorker, name: str) -> KnownWorker:
        """It has another name from now on. Raises as `make` does."""
        if worker.name == name:
            return worker
        self.check_name(name)
        return self._change(worker, name=name)

    def place(self, worker: KnownWorker, region: str, labels: dict[str, str]) -> KnownWorker:
        """Where it is and what it is from now on."""
        if (worker.region, worker.labels) == (region, labels):
            return worker
        return self._change(worker, region=region, labels=labels)

    def drain(self, worker: KnownWorker, *, draining: bool) -> KnownWorker:
        """Whether it is to have containers; kept over restarts."""
        return self._change(worker, is_draining=draining)

    def remove(self, worker: KnownWorker) -> None:
        """It is none of ours any more."""
        self._keep({one: other for one, other in self._workers.items() if one != worker.worker_id})

    def check_name(self, name: str) -> None:
        """Raises InvalidError for a name that is none, and AlreadyExistsError for one that is taken."""
        if not _NAME.fullmatch(name) or name == LOCAL:
            raise errors.InvalidError(
                f"{name!r} cannot name a worker: letters, digits, '.', '_' and '-', at most 63, and not {LOCAL!r}"
            )
        if any(one.name == name for one in self._workers.values()):
            raise errors.AlreadyExistsError(
                f"there is a worker {name!r} already: join with another --name, or remove that one first with "
                f"`farcall worker remove {name}`"
            )

    def _change(self, worker: KnownWorker, **changes: Any) -> KnownWorker:
        changed = msgspec.structs.replace(self._workers[worker.worker_id], **changes)
        self._keep(self._workers | {worker.worker_id: changed})
        return changed

    def _keep(self, workers: dict[str, KnownWorker]) -> None:
        """These are all from now on; where they cannot be written, those that were."""
        write_private(self._path, msgspec.json.encode(list(workers.values())))
        self._workers = workers


def check_said(region: str, labels: Mapping[str, str], others: Iterable[str] = ()) -> None:
    """What a worker says of itself is shown on terminals and looked for in requests: raises InvalidError for a region,
    a label or another word that cannot be, as it holds what is no visible character or is too long."""
    kinds = [("region", region), *(("label", f"{name}={value}") for name, value in labels.items())]
    kinds += [("word", one) for one in others]
    for kind, text in kinds:
        if not text.isprintable() or len(text) > (2 if kind == "label" else 1) * _LONGEST:
            shown = ascii(text[:_SHOWN]) + "..." * (len(text) > _SHOWN)
            raise errors.InvalidError(
                f"{shown} cannot be a worker's {kind}: write visible characters and spaces, at most {_LONGEST}"
            )
    if len(labels) > _MOST_LABELS:
        raise errors.InvalidError(f"a worker has at most {_MOST_LABELS} labels, not {len(labels)}: leave some out")
