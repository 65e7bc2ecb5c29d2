"""Methods that ask the server, written once for both of their forms.

    class Secret:
        @asks
        def update(self, env_dict: Mapping[str, str]) -> Asking[None]:
            \"\"\"What it does.\"\"\"
            yield lambda seq: PutSecret(seq, ...)

Each `yield` sends a request and gives the body of its answer, or raises what the request was refused for. Called,
`secret.update(...)` blocks; `await secret.update.aio(...)` awaits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Concatenate, ParamSpec, TypeVar

from farcall.sdk.twin import twin

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

Asking = Generator[Callable[[int], Any], bytes, R]


def asks(method: Callable[Concatenate[S, P], Asking[R]]) -> twin[S, P, R]:
    """Makes a method with two forms of a generator of requests."""

    def blocking(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        from farcall.sdk import client, local

        local.only_with_server(method.__qualname__)
        asking = method(self, *args, **kwargs)
        try:
            make = next(asking)
            while True:
                try:
                    answer, _ = client.current().request(make)
                except Exception as error:
                    make = asking.throw(error)
                else:
                    make = asking.send(answer.body)
        except StopIteration as end:
            return end.value

    async def awaited(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        from farcall.sdk import client, local

        local.only_with_server(method.__qualname__)
        asking = method(self, *args, **kwargs)
        try:
            make = next(asking)
            while True:
                try:
                    answer, _ = await client.current().request_async(make)
                except Exception as error:
                    make = asking.throw(error)
                else:
                    make = asking.send(answer.body)
        except StopIteration as end:
            return end.value

    blocking.__name__, blocking.__doc__ = method.__name__, method.__doc__
    made = twin(blocking)
    made.awaited(awaited)
    return made
