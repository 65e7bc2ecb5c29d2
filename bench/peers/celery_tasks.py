"""The Celery application that is measured; its workers import it, too. The environment names Redis's socket."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

_redis = f"redis+socket://{os.environ['BENCH_REDIS_SOCKET']}"
app: Any = Celery("bench", broker=_redis, backend=_redis)
app.conf.update(
    # At least once, as spawned calls are run; by default a task is lost with the worker that took it.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    # Tasks that do nothing are fetched many at a time; by default it is four.
    worker_prefetch_multiplier=64,
)


@app.task
def echo(value: int) -> int:
    return value


@app.task(ignore_result=True)
def unanswered(value: int) -> None:
    """Waits in the queue: no worker runs while it is sent."""
