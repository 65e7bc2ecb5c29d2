"""Variants: the same function or class with other options, in containers of its own.

A variant's id follows from the function's id and what is different, so equal variants share their containers, whoever
makes them. The server is told of a variant by the call that first uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

import msgspec

from farcall.sdk import ids
from farcall.sdk.options import check_volumes
from farcall.spec.secret import SecretSpec
from farcall.spec.variant import Variant
from farcall.spec.volume import VolumeSpec

if TYPE_CHECKING:
    from farcall.sdk.app import App
    from farcall.sdk.options import Declaration
    from farcall.wire.messages import AddVariant


class Member(Protocol):
    """A function or class of an app."""

    variation: Variation[Any]

    @property
    def app(self) -> App: ...

    @property
    def declaration(self) -> Declaration: ...

    @property
    def marks(self) -> tuple[str, ...]: ...

    def copied(self, declaration: Declaration | None, unimplemented: tuple[str, ...]) -> Any: ...


M = TypeVar("M", bound=Member)


class Variation(Generic[M]):
    """What a function or class is a variant of (itself, where it is none), what is changed, and, of one that is none,
    the variants there are."""

    def __init__(self, base: M, changes: Variant | None) -> None:
        self.base = base
        self.changes = changes
        self.known: dict[bytes, M] = {}

    def announcement(self, base_id: str) -> AddVariant:
        """The message that makes this variant of `base_id` known. It names the variant's own id."""
        from farcall.wire.messages import AddVariant

        assert self.changes is not None
        return AddVariant(ids.variant_id(base_id, _encoded(self.changes)), base_id, self.changes)


def of(member: M, declaration: Declaration) -> M:
    """The variant that is declared like that, of a function, a class, or a variant."""
    base: M = member.variation.base
    unimplemented = tuple(mark for mark in base.marks if mark not in base.declaration.unimplemented)
    unimplemented += declaration.unimplemented
    return _known(base, _difference(base, declaration), declaration, unimplemented)


def rebuilt(base: M, changes: Variant, unimplemented: tuple[str, ...]) -> M:
    """A variant that has travelled."""
    return _known(base, changes, None, unimplemented)


def _known(base: M, changes: Variant, declaration: Declaration | None, unimplemented: tuple[str, ...]) -> M:
    if not changes.changes and unimplemented == base.marks:
        return base
    key = _encoded(changes) + repr(unimplemented).encode()
    made = base.variation.known.get(key)
    if made is None:
        made = base.copied(declaration, unimplemented)
        made.variation = Variation(base, changes)
        base.variation.known[key] = made
    return cast("M", made)


def _encoded(changes: Variant) -> bytes:
    return msgspec.msgpack.encode(changes, order="deterministic")


def _difference(base: Member, declaration: Declaration) -> Variant:
    before = base.declaration
    changes = {
        name: getattr(declaration, name)
        for name in Variant.__struct_fields__
        if name not in ("secrets", "volumes") and getattr(declaration, name) != getattr(before, name)
    }
    if (declaration.secrets, declaration.env) != (before.secrets, before.env):
        changes["secrets"] = secrets_of(base.app, declaration)
    if declaration.volumes != before.volumes:
        changes["volumes"] = volumes_of(base.app, declaration)
    return Variant(**changes)


def volumes_of(app: App, declaration: Declaration) -> tuple[VolumeSpec, ...]:
    """The volumes of the app and those of the function, which are mounted in their place where the path is one's.
    Raises InvalidError where they cannot be mounted together."""
    volumes = {volume.path: volume for volume in (*app.volume_specs, *declaration.volumes)}
    check_volumes("volumes=", volumes.values())
    return tuple(volumes.values())


def secrets_of(app: App, declaration: Declaration) -> tuple[SecretSpec, ...]:
    """The secrets of the app, those of the function, and its environment variables; later ones win."""
    secrets = [secret.spec for secret in (*app.secrets, *declaration.secrets)]
    if declaration.env:
        secrets.append(SecretSpec(values=declaration.env))
    return tuple(secrets)
