"""Overload: what becomes of new work while there is more than the bounds allow."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from farcall import errors
from farcall.server.admission import Bound, Holding, greediest_first

if TYPE_CHECKING:
    from farcall.server.app import App
    from farcall.server.call import Input
    from farcall.server.server import Server
    from farcall.settings import Settings

LOGGED_SECONDS = 10.0  # between two lines of log


class Overload:
    """The work in memory, and who gives way where it is too much: the newest of the app that holds the most. What a
    container has had, and what was acknowledged (spawned), is not turned away."""

    def __init__(self, server: Server, settings: Settings) -> None:
        self._server = server
        self.whole = Holding(Bound(settings.queue_inputs, settings.queue_memory))
        self._of_one = Bound(settings.app_queue_inputs, settings.app_queue_memory)
        self._logged_at = float("-inf")

    def holding(self) -> Holding:
        """That of a new app."""
        return Holding(self._of_one, self.whole)

    def relieve(self, app: App, new: list[Input]) -> list[Input]:
        """Makes what is held fit the bounds again; `new` has just been added for `app`. Returns what is left of it."""
        if app.holding.is_over:
            self._turn_away(app, new, app.holding, "app_")
            return []
        apps = {one.holding: one for one in self._server.apps.values()}
        for holding in greediest_first(apps, self.whole.bound):
            if holding is app.holding:
                break
            self._shed(apps[holding])
            if not self.whole.is_over:
                return new
        self._turn_away(app, new, self.whole, "")
        return []

    def _shed(self, app: App) -> None:
        inputs, size = self.whole.excess
        inputs, size = self.whole.inputs - inputs, self.whole.bytes - size
        waiting = list(itertools.chain.from_iterable(pool.unstarted() for pool in app.pools.values()))
        waiting.sort(key=_submitted_at)
        gone: list[Input] = []
        why = self._why(app, self.whole, "")
        for one in reversed(waiting):
            if self.whole.inputs <= inputs and self.whole.bytes <= size:
                break
            self._fail(one, why)
            gone.append(one)
        for pool in {one.call.pool for one in gone}:
            pool.sweep_soon()
        self._log(app, len(gone), why)

    def _turn_away(self, app: App, inputs: list[Input], over: Holding, prefix: str) -> None:
        why = self._why(app, over, prefix)
        for one in inputs:
            self._fail(one, why)
        self._log(app, len(inputs), why)

    def _fail(self, one: Input, why: str) -> None:
        pool = one.call.pool
        pool.fail(one, errors.OverloadedError(f"{pool.function.name} was turned away and has not run: {why}"))

    def _why(self, app: App, over: Holding, prefix: str) -> str:
        mine = app.holding
        if over.inputs > over.bound.inputs:
            name, most = f"{prefix}queue_inputs", f"{over.bound.inputs:,}"
            has, all_ = f"{mine.inputs:,}", f"{over.inputs:,}"
        else:
            name, most = f"{prefix}queue_memory", _mebibytes(over.bound.bytes)
            has, all_ = f"{mine.inputs:,} ({_mebibytes(mine.bytes)})", f"{over.inputs:,} ({_mebibytes(over.bytes)})"
        held = (
            f"app {app.name} ({app.app_id}) has {has} inputs of .remote and .map in the server's memory"
            if over is mine
            else f"the server has {all_} inputs of .remote and .map in memory, and of these app {app.name} "
            f"({app.app_id}) the most, {has}"
        )
        return (
            f"{held}; {name} allows {most}. Call again when some have their results, use .spawn or .spawn_map, whose "
            f"inputs wait on disk, or raise {name} (farcall server start --{name.replace('_', '-')})"
        )

    def _log(self, app: App, count: int, why: str) -> None:
        now = self._server.now()
        if count and now - self._logged_at >= LOGGED_SECONDS:
            self._logged_at = now
            self._server.log.warning("%d inputs of %s were turned away: %s", count, app.app_id, why)


def _submitted_at(one: Input) -> float:
    return one.submitted_at


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
