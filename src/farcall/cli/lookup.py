"""Asking the server, and finding what a command line names."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from farcall import errors
from farcall.cli.usage import UsageError, nearest

if TYPE_CHECKING:
    from farcall.sdk.client import Client
    from farcall.wire.inspection import AppListing

T = TypeVar("T")


def ask(client: "Client", make: Callable[[int], Any], kind: type[T]) -> T:
    """The body of the answer to a request."""
    import msgspec

    answer, _ = client.request(make)
    return msgspec.msgpack.decode(answer.body, type=kind)


@contextmanager
def running_server(what: str) -> "Generator[Client]":
    """The server that runs. Raises NotFoundError, which says that there is no `what`, where none does."""
    from farcall.sdk import client

    connected = client.connect_existing()
    if connected is None:
        raise errors.NotFoundError(f"there is no {what}: the farcall server does not run")
    try:
        yield connected
    finally:
        connected.close()


@contextmanager
def any_server() -> "Generator[Client]":
    """The server that runs, or one that is started, for what outlives a server."""
    from farcall.sdk import client

    connected = client.connect_or_start()
    try:
        yield connected
    finally:
        connected.close()


def find_app(client: "Client", reference: str, *, ended: bool = False) -> "AppListing":
    """The app of that id or name: one that runs, or with `ended` the newest that did. Raises NotFoundError, and
    UsageError where several of that name run."""
    from farcall.wire.inspection import AppListing, ListApps

    apps = ask(client, lambda seq: ListApps(seq, ended), list[AppListing])
    found = [app for app in apps if reference in (app.app_id, app.name)]
    running = [app for app in found if app.state != "stopped"]
    if len(running) > 1:
        listing = "\n".join(f"  {app.app_id}  {app.state}" for app in running)
        raise UsageError(f"several apps are named {reference!r}; give the id of one:\n{listing}")
    if not found:
        hint = nearest(reference, {app.app_id if reference.startswith("ap-") else app.name for app in apps})
        raise errors.NotFoundError(f"no app {reference!r} {'is known' if ended else 'runs'}{hint}")
    return (running or found)[0]
