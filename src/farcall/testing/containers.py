"""An app under test in containers, on a server that was started for tests: it is told what is to happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from farcall import errors
from farcall.sdk import client, exceptions_codec
from farcall.testing.clock import Clock
from farcall.testing.faults import Fault, check_times
from farcall.wire.descriptors import close_all
from farcall.wire.inspection import ContainerListing, ListContainers, StopContainer
from farcall.wire.testing import AdvanceClock, GetTestReport, InjectFault, TestReport

if TYPE_CHECKING:
    from farcall.sdk.app import App
    from farcall.testing.simulation import Call


class ServerClock(Clock):
    """The server's, which goes on by itself as well."""

    def __init__(self) -> None:
        super().__init__()
        self._began = self._moved_by(0.0)

    def now(self) -> float:
        """Seconds since the run began."""
        return self._moved_by(0.0) - self._began

    def advance(self, seconds: float) -> None:
        """Lets `seconds` pass on the server."""
        self._moved_by(seconds)

    sleep = advance

    def _moved_by(self, seconds: float) -> float:
        return _asked(lambda seq: AdvanceClock(seq, seconds), TestReport).now


class Containers:
    """The platform of `farcall.testing.Run` for an app that runs on a server for tests."""

    def __init__(self, app: App) -> None:
        self.clock: Clock = ServerClock()
        self._app = app

    def add_fault(self, name: str, fault: Fault, times: int) -> None:
        """The next `times` attempts of a function or method get it."""
        check_times(name, times)
        function_id, method = self._ids(name)
        data, ends_container = b"", False
        if fault.kind == "raise":
            error = fault.exception()
            payload = exceptions_codec.dump_exception(error)
            if payload.fds:
                close_all(payload.fds)
                raise errors.InvalidError(f"fail({name}): {type(error).__name__} holds too much to travel")
            data, ends_container = payload.data, isinstance(error, errors.ContainerCrashedError)
        client.current().request(
            lambda seq: InjectFault(
                seq, function_id, method, fault.kind, times, fault.after, fault.seconds, data, ends_container
            )
        )

    def slow_starts(self, name: str, seconds: float) -> None:
        """Not here."""
        raise _only_here("slow_starts")

    def replace(self, name: str, fake: Callable[..., Any]) -> None:
        """Not here."""
        raise _only_here("replace")

    def inputs(self) -> list[Call]:
        """Not here."""
        raise _only_here("calls")

    def end_containers(self, name: str) -> None:
        """Ends those of a function or class, with their exit hooks."""
        for container in _asked(ListContainers, list[ContainerListing]):
            if container.app_id == self._app.app_id and container.function == name:
                client.current().request(lambda seq, id=container.container_id: StopContainer(seq, id, graceful=True))

    def started(self, name: str) -> int:
        """How many containers were started for a function or class."""
        return self._report().starts.get(name, 0)

    def left(self) -> dict[str, int]:
        """How many faults have met no attempt, by function or method."""
        return self._report().left

    def _report(self) -> TestReport:
        app_id = self._app.app_id or ""
        return _asked(lambda seq: GetTestReport(seq, app_id), TestReport)

    def _ids(self, name: str) -> tuple[str, str]:
        if name in self._app.registered_functions:
            return self._app.registered_functions[name].object_id, ""
        of_class, _, method = name.rpartition(".")
        return self._app.registered_classes[of_class].object_id, method


def _asked(make: Callable[[int], Any], kind: Any) -> Any:
    answer, fds = client.current().request(make)
    close_all(fds)
    return msgspec.msgpack.decode(answer.body, type=kind)


def _only_here(what: str) -> errors.UnimplementedError:
    return errors.UnimplementedError(
        f"{what}() is about what happens in the test's process, and this app runs in containers: leave out server="
    )
