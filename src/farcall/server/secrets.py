"""Stored secrets, and the environment that containers get."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from farcall import errors
from farcall.spec.secret import check_values
from farcall.state import records
from farcall.wire.secrets import DeleteSecret, ListSecrets, PutSecret, ReadSecret, SecretReport

if TYPE_CHECKING:
    from farcall.spec.function import FunctionSpec
    from farcall.state.store import StateStore

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, str]).decode


class Secrets:
    """The secrets of one server. Values are in memory only for as long as they are on their way to a container."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._changing = asyncio.Lock()

    async def answer(self, message: PutSecret | DeleteSecret | ListSecrets | ReadSecret) -> bytes | None:
        """The body of the answer to a client's request. Raises what the request is refused for."""
        match message:
            case PutSecret(name=name, values=values, existing=existing):
                return _encode(await self._put(name, values, existing))
            case DeleteSecret(name=name):
                await self._store.delete_secret(name)
                return None
            case ListSecrets():
                return _encode([_report(secret) for secret in await self._store.secrets()])
            case ReadSecret(name=name, required_keys=required_keys):
                return _encode(await self._values(name, required_keys, "this image"))

    async def check(self, functions: Iterable[FunctionSpec]) -> None:
        """Raises NotFoundError where a function names a secret that is not there, or lacks a key."""
        for function in functions:
            for secret in function.secrets:
                if secret.name:
                    await self._values(secret.name, secret.required_keys, function.name)

    async def environment(self, function: FunctionSpec) -> dict[str, str]:
        """The variables of a container that starts now. Raises as `check` does."""
        environment = dict(function.env)
        for secret in function.secrets:
            if secret.name:
                environment |= await self._values(secret.name, secret.required_keys, function.name)
            else:
                environment |= secret.values
        return environment

    async def _put(self, name: str, values: dict[str, str], existing: str) -> SecretReport:
        if not _NAME.fullmatch(name):
            raise errors.InvalidError(
                f"{name!r} cannot name a secret: letters, digits, '.', '_' and '-', at most 64, none of '._-' first"
            )
        check_values(f"secret {name!r}", values)
        async with self._changing:
            if existing == "merge":
                values = self._open(await self._store.secret(name)) | values
                check_values(f"secret {name!r}", values)
            secret = records.Secret(
                name=name,
                secret_id=f"st-{os.urandom(11).hex()}",
                keys=tuple(sorted(values)),
                sealed=self._store.vault.seal(_encode(values), _sealed_as(name)),
            )
            return _report(await self._store.put_secret(secret, replace=existing != "never"))

    async def _values(self, name: str, required_keys: Iterable[str], whose: str) -> dict[str, str]:
        try:
            secret = await self._store.secret(name)
        except errors.NotFoundError as error:
            keys = " ".join(f"{key}=-" for key in required_keys) or "KEY=-"
            raise errors.NotFoundError(
                f"{whose}: {error}{'' if str(error).endswith('?') else '.'} Create it with "
                f"`farcall secret create {name} {keys}`"
            ) from None
        values = self._open(secret)
        if missing := [key for key in required_keys if key not in values]:
            raise errors.NotFoundError(
                f"{whose}: secret {name!r} has no {' and no '.join(missing)}; it has "
                f"{', '.join(sorted(values)) or 'no keys'}. Add with `farcall secret update {name} "
                f"{' '.join(f'{key}=-' for key in missing)}`"
            )
        return values

    def _open(self, secret: records.Secret) -> dict[str, str]:
        return _decode(self._store.vault.open(secret.sealed, _sealed_as(secret.name)))


def _report(secret: records.Secret) -> SecretReport:
    return SecretReport(secret.secret_id, secret.name, list(secret.keys), secret.created_at, secret.updated_at)


def _sealed_as(name: str) -> str:
    return f"secret {name!r}"
