"""The apps that run, as the store keeps them: what the next server needs to take them up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from farcall import errors
from farcall.spec.function import AppSpec
from farcall.state import records
from farcall.state.schema import definition_of

if TYPE_CHECKING:
    from farcall.server.app import App
    from farcall.state.store import StateStore


class Definitions:
    """Definitions are sealed: they hold the secrets that a program brought along."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._log = logging.getLogger("farcall.server")

    async def keep(self, app: App) -> None:
        """Records an app as it is now. A disk that takes nothing is logged: the app runs all the same."""
        async with app.recording:
            definition = self._store.vault.seal(msgspec.msgpack.encode(app.spec), definition_of(app.app_id))
            try:
                if app.recorded:
                    await self._store.set_app_definition(app.app_id, definition)
                else:
                    await self._store.add_app(
                        records.App(
                            app_id=app.app_id,
                            name=app.name,
                            state=app.mode,
                            definition=definition,
                            client_pid=app.client_pid,
                        )
                    )
                    app.recorded = True
            except errors.FarcallError as error:
                self._log.error("app %s is not recorded: %s", app.app_id, error)

    async def set_state(self, app_id: str, state: records.AppState) -> None:
        """Records that an app has come to another state; a disk that takes nothing is logged."""
        try:
            await self._store.set_app_state(app_id, state)
        except errors.FarcallError as error:
            self._log.warning("app %s: %s", app_id, error)

    async def kept(self) -> list[records.App]:
        """The apps that ran when an earlier server ended."""
        return [record for record in await self._store.apps() if record.state not in ("stopped", "deployed")]

    def open(self, record: records.App) -> AppSpec | None:
        """What was recorded of an app; None where nobody can read it any more, which is logged."""
        try:
            definition = self._store.vault.open(record.definition, definition_of(record.app_id))
        except errors.FarcallError as error:
            self._log.error("app %s (%s) is not taken up: %s", record.name, record.app_id, error)
            return None
        return msgspec.msgpack.decode(definition, type=AppSpec)
