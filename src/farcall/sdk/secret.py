"""`Secret`: environment variables whose values are not shown."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import msgspec

from farcall.errors import AlreadyExistsError, InvalidError, NotFoundError
from farcall.sdk.asking import Asking, asks
from farcall.sdk.context import is_local
from farcall.sdk.dotenv import read_dotenv
from farcall.sdk.environment import only_main
from farcall.sdk.types import SecretInfo
from farcall.spec.secret import SecretSpec, check_values
from farcall.wire.secrets import DeleteSecret, ListSecrets, PutSecret, ReadSecret, SecretReport

__all__ = ["Secret"]


class _Secrets:
    """`Secret.objects`: the secrets that the server stores."""

    _display_name = "Secret.objects"

    @asks
    def create(
        self,
        name: str,
        env_dict: Mapping[str, str],
        *,
        allow_existing: bool = False,
        environment_name: str | None = None,
        client: Any = None,
    ) -> Asking[None]:
        """Stores a secret. Where there is one of that name: AlreadyExistsError, or with `allow_existing` nothing at
        all."""
        only_main("Secret.objects.create", environment_name)
        values = _checked("Secret.objects.create", env_dict)
        try:
            yield lambda seq: PutSecret(seq, name, values)
        except AlreadyExistsError:
            if not allow_existing:
                raise

    @asks
    def list(
        self,
        *,
        max_objects: int | None = None,
        created_before: datetime | str | None = None,
        environment_name: str | None = None,
        client: Any = None,
    ) -> Asking[Sequence[Secret]]:
        """The stored secrets, newest first; `max_objects` of them at most, all made before `created_before` (local
        time where it names no zone)."""
        only_main("Secret.objects.list", environment_name)
        if isinstance(created_before, str):
            created_before = datetime.fromisoformat(created_before)
        before = None if created_before is None else created_before.astimezone()
        reports = _reports((yield ListSecrets))
        newest = [
            Secret.from_name(report.name)
            for report in reversed(reports)
            if before is None or _time(report.created_at) < before
        ]
        return newest[:max_objects]

    @asks
    def delete(
        self, name: str, *, allow_missing: bool = False, environment_name: str | None = None, client: Any = None
    ) -> Asking[None]:
        """Deletes a stored secret, for good; containers that run keep their values. Where there is none of that name:
        NotFoundError, or with `allow_missing` nothing at all."""
        only_main("Secret.objects.delete", environment_name)
        try:
            yield lambda seq: DeleteSecret(seq, name)
        except NotFoundError:
            if not allow_missing:
                raise


class Secret:
    """Environment variables for containers: values of this program, or those stored on the server under a name.

    Values are never shown, in `repr`, messages or logs. Of a function's secrets, the app's first, later ones win.
    """

    objects = _Secrets()

    def __init__(self, spec: SecretSpec, description: str) -> None:
        self._spec = spec
        self._description = description

    @property
    def _display_name(self) -> str:
        return f"Secret.{self._description}"

    # --- constructors

    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        environment_name: str | None = None,
        required_keys: Sequence[str] = (),
        client: Any = None,
    ) -> Secret:
        """The stored secret of that name, with the values that it has when a container starts.

        An app that names a secret which is not there, or lacks one of `required_keys`, does not start: NotFoundError.
        """
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidError(f"Secret.from_name takes the name of a secret, not {name!r}")
        if isinstance(required_keys, str):
            raise InvalidError(f"Secret.from_name({name!r}): required_keys={required_keys!r} is no list of keys")
        only_main("Secret.from_name", environment_name)
        return cls(SecretSpec(name, tuple(required_keys)), f"from_name({name!r})")

    @classmethod
    def from_dict(cls, env_dict: Mapping[str, str | None] | None = None) -> Secret:
        """A secret with these values; a value of None leaves its name out."""
        return cls(SecretSpec(values=_checked("Secret.from_dict", env_dict or {})), "from_dict")

    @classmethod
    def from_dotenv(cls, path: str | Path | None = None, *, filename: str = ".env", client: Any = None) -> Secret:
        """The variables of a dotenv file: `path` itself, or the nearest `filename` from the folder `path`, or the
        current one, upward. In a container it is empty: the values are there already."""
        if not is_local():
            return cls(SecretSpec(), "from_dotenv")
        found = _find_dotenv(Path.cwd() if path is None else Path(path), filename)
        return cls(SecretSpec(values=_checked(str(found), read_dotenv(found))), f"from_dotenv({str(found)!r})")

    @classmethod
    def from_local_environ(cls, env_keys: Sequence[str]) -> Secret:
        """The values that these variables have here and now. A variable that is not set is `InvalidError`. In a
        container it is empty: the values are there already."""
        if isinstance(env_keys, str):
            raise InvalidError(f"Secret.from_local_environ: {env_keys!r} is no list of variables")
        if not is_local():
            return cls(SecretSpec(), "from_local_environ")
        missing = [name for name in env_keys if name not in os.environ]
        if missing:
            raise InvalidError(f"Secret.from_local_environ: not set here: {', '.join(missing)}")
        values = _checked("Secret.from_local_environ", {name: os.environ[name] for name in env_keys})
        return cls(SecretSpec(values=values), "from_local_environ")

    # --- what it is

    @property
    def name(self) -> str | None:
        """The name under which it is stored; None for one that is not."""
        return self._spec.name or None

    @property
    def spec(self) -> SecretSpec:
        """What the server is told of it."""
        return self._spec

    @asks
    def update(self, env_dict: Mapping[str, str]) -> Asking[None]:
        """Changes and adds values of a stored secret, for containers that start from now on."""
        name = self._stored("update")
        values = _checked("Secret.update", env_dict)
        yield lambda seq: PutSecret(seq, name, values, "merge")

    @asks
    def info(self, *, refresh: bool = False) -> Asking[SecretInfo]:
        """The keys of a stored secret, and when it was made and last changed."""
        name = self._stored("info")
        for report in _reports((yield ListSecrets)):
            if report.name == name:
                return SecretInfo(name, tuple(report.keys), _time(report.created_at), _time(report.updated_at))
        raise NotFoundError(f"there is no secret {name!r}. Create it with `farcall secret create {name} KEY=-`")

    def _stored(self, method: str) -> str:
        if not self._spec.name:
            raise InvalidError(f"Secret.{self._description} is not stored on the server, and has no {method}()")
        return self._spec.name

    # --- as an object

    def __reduce__(self) -> tuple[Any, ...]:
        # A secret that travels with a function's globals must not carry its values there.
        return Secret, (SecretSpec(self._spec.name, self._spec.required_keys), self._description)

    def __repr__(self) -> str:
        keys = sorted(self._spec.values) or self._spec.required_keys
        return f"<farcall.Secret {self._description}{': ' if keys else ''}{', '.join(keys)}>"


def values_of(secret: Secret) -> dict[str, str]:
    """The variables, those of a stored secret from the server: for an image that is built with them. Handle with
    care."""
    spec = secret.spec
    if not spec.name:
        return dict(spec.values)
    from farcall.sdk import client

    answer, _ = client.current().request(lambda seq: ReadSecret(seq, spec.name, spec.required_keys))
    return msgspec.msgpack.decode(answer.body, type=dict[str, str])


def _reports(body: bytes) -> list[SecretReport]:
    return msgspec.msgpack.decode(body, type=list[SecretReport])


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds).astimezone()


def _checked(where: str, values: Mapping[str, str | None]) -> dict[str, str]:
    """The values that are not None. Raises InvalidError, without a value in it, where they cannot be variables."""
    if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidError(f"{where} takes a dict of names and values, not a {type(values).__name__}")
    for name, value in cast("Mapping[Any, Any]", values).items():
        if not isinstance(name, str) or not isinstance(value, str | None):
            raise InvalidError(f"{where}: {name!r} has a {type(value).__name__}; names and values are strings")
    checked = {name: value for name, value in values.items() if value is not None}
    check_values(where, checked)
    return checked


def _find_dotenv(start: Path, filename: str) -> Path:
    if start.is_file():
        return start
    if not start.is_dir():
        raise NotFoundError(f"Secret.from_dotenv: there is no file or folder {start}")
    for folder in (start.absolute(), *start.absolute().parents):
        if (folder / filename).is_file():
            return folder / filename
    raise NotFoundError(f"Secret.from_dotenv: there is no {filename} in {start} or a folder above it")
