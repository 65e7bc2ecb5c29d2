"""What the tests of secrets call. They store "conformance-one" and "conformance-two" first."""

import os
import sys
from typing import Any

import farcall

app = farcall.App(
    "secrets",
    secrets=[farcall.Secret.from_dict({"A": "app", "B": "app", "C": "app", "D": "app"})],
)
one = farcall.Secret.from_name("conformance-one", required_keys=["TOKEN"])


@app.function(
    secrets=[farcall.Secret.from_name("conformance-two"), farcall.Secret.from_dict({"C": "dict", "D": "dict"})],
    env={"D": "env"},
)
def order() -> list[str]:
    return [os.environ[name] for name in "ABCD"]


@app.function(secrets=[one], single_use_containers=True)
def token() -> str:
    return os.environ["TOKEN"]


@app.cls(secrets=[one])
class Service:
    @farcall.enter()
    def open(self) -> None:
        self.token = os.environ["TOKEN"]

    @farcall.method()
    def show(self) -> list[str]:
        return [self.token, os.environ["TOKEN"]]


# A variable that the loader reads makes its container start by exec.
@app.function(secrets=[one], env={"LC_ALL": "C"})
def hold(seconds: float) -> int:
    """A container of its own kind, with the value in its environment, for as long as it takes to look around."""
    import time

    print("holding", file=sys.stderr)
    print("started", flush=True)
    time.sleep(seconds)
    return len(os.environ["TOKEN"])


@app.function(secrets=[one])
def fail() -> None:
    secret = farcall.Secret.from_dict({"TOKEN": os.environ["TOKEN"]})
    raise ValueError(f"it shows {secret!r} and {one!r}")


@app.function(secrets=[one])
def crash() -> None:
    os.abort()


@app.function()
def without() -> Any:
    """What code of the app that was not given the secret can learn of it."""
    from farcall.sdk import client

    attempts: list[Any] = [os.environ.get("TOKEN")]
    spec = client.current().lookup(token.object_id)
    attempts.append((spec.env, spec.secrets))
    for attempt in (
        lambda: farcall.Secret.objects.list(),
        lambda: one.info(),
        lambda: one.update({"TOKEN": "mine"}),
        lambda: farcall.Secret.objects.create("conformance-three", {}),
        lambda: farcall.Secret.objects.delete("conformance-one"),
    ):
        try:
            attempts.append(attempt())
        except farcall.errors.PermissionDeniedError as error:
            attempts.append(str(error))
    return attempts
