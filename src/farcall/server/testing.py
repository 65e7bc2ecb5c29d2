"""What a test does to a server that was started for it: time that passes when told to, and attempts that fail."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING, Any

import msgspec

from farcall import errors
from farcall.wire import messages
from farcall.wire.testing import AdvanceClock, GetTestReport, InjectFault, TestReport

if TYPE_CHECKING:
    from farcall.server.call import Input
    from farcall.server.server import Server
    from farcall.worker.container import Container

_encode = msgspec.msgpack.Encoder().encode


class Testing:
    """Faults that wait for attempts, and what was started. A server that is not for tests has one that refuses."""

    def __init__(self, server: Server, *, allowed: bool) -> None:
        self.allowed = allowed
        self._server = server
        self._faults: defaultdict[tuple[str, str], deque[InjectFault]] = defaultdict(deque)
        self._starts: Counter[str] = Counter()

    def started(self, function_id: str) -> None:
        """A container was started for a function or class."""
        if self.allowed:
            self._starts[function_id] += 1

    @property
    def has_faults(self) -> bool:
        """Whether any attempt may be to suffer something."""
        return bool(self._faults)

    def meets(self, one: Input, container: Container) -> bool:
        """An attempt begins in a container. Whether it is to suffer something in the place of running there."""
        waiting = self._faults.get((one.call.pool.function.function_id, one.call.method.name))
        if not waiting:
            return False
        one.fault = waiting.popleft()
        if not one.fault.after:
            self.suffers(one, container)
            return True
        return False

    def suffers(self, one: Input, container: Container) -> None:
        """An attempt's fault takes the place of what its container would answer, in a moment."""
        fault, one.fault = one.fault, None
        assert fault is not None
        self._server.loop.call_soon(self._suffer, one, container, fault)

    def _suffer(self, one: Input, container: Container, fault: InjectFault) -> None:
        pool = one.call.pool
        if one.call.inputs.get(one.index) is not one:
            return
        if fault.kind == "slow":
            self._be_slow(one, container, fault.seconds)
        elif fault.kind == "lose":
            container.kill("lost, for a test")
            pool.lost(one, container, "a test had it so")
        else:
            if fault.ends_container:
                container.kill("crashed, for a test")
            if not pool.retry(one, container):
                output = messages.Output(
                    one.index, messages.EXCEPTION, fault.error, 0, container.container_id, one.attempts + 1
                )
                pool.deliver(one.call, [output], [])
        pool.dispatch()

    def _be_slow(self, one: Input, container: Container, seconds: float) -> None:
        pool = one.call.pool
        limit = pool.function.timeout
        self._server.clock.advance(min(seconds, limit))
        if seconds <= limit:
            pool.requeue([one])
            return
        container.kill("a test had an input take too long")
        if not pool.retry(one, container):
            error = errors.FunctionTimeoutError(f"{pool.function.name} ran longer than its timeout of {limit:g} s")
            pool.fail(one, error, container.container_id)

    def answer(self, message: Any) -> bytes | None:
        """Does what a message says. Raises PermissionDeniedError, NotFoundError."""
        if not self.allowed:
            raise errors.PermissionDeniedError(
                "this server is not one for tests: start one with farcall.testing.Server()"
            )
        match message:
            case AdvanceClock(seconds=seconds):
                if not seconds >= 0:
                    raise errors.InvalidError(f"{seconds!r} s cannot pass: time goes forward only")
                self._server.clock.advance(seconds)
                self._server.tick()
                return _encode(TestReport(self._server.now()))
            case InjectFault():
                if message.function_id not in self._server.functions:
                    raise errors.NotFoundError(f"there is no function {message.function_id}")
                self._faults[message.function_id, message.method].extend([message] * message.times)
                return None
            case GetTestReport(app_id=app_id):
                return _encode(self._report(app_id))
            case _:
                raise errors.ProtocolError(f"a {type(message).__name__} has no place here")

    def _report(self, app_id: str) -> TestReport:
        app = self._server.apps.get(app_id)
        if app is None:
            raise errors.NotFoundError(f"there is no app {app_id}")
        report = TestReport(self._server.now())
        for function_id, function in app.functions.items():
            report.starts[function.name] = self._starts[function_id]
            for method in function.methods:
                if waiting := self._faults.get((function_id, method.name)):
                    name = f"{function.name}.{method.name}" if method.name else function.name
                    report.left[name] = len(waiting)
        return report
