"""Load for the kills and the soak: threads that call in every way there is, and the model of what may come of it.

The model. Every call gives its one right result, or one of these errors, and each only when there is cause for it:

| error | of what | cause, while it was under way |
|---|---|---|
| ConnectionLostError | what is in memory; a `spawn` that is not acknowledged yet, a question | the server was killed |
| ContainerCrashedError | inputs without budget for it, generators | a container was killed (of a generator: or lost) |
| ResourceExhaustedError | what must be written: `spawn`, a commit; a container's start | the disk was full |
| OSError (ENOSPC) | a function that writes | the disk was full |
| InputCancelledError | what this load has cancelled | |

A spawned call that is acknowledged has, whatever happens, one result for each input, which stays the same, and once it
is there the input never runs again. A call that ended with `may_have_run=False` never ran.
"""

import errno
import importlib
import itertools
import math
import pkgutil
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

import farcall.sdk
import farcall.settings
import farcall.spec
import farcall.wire
from farcall import errors
from tests.faults.faults import Faults

PATIENCE = 300.0  # seconds that a call may take over all that is done to it
NUMBERS = 1000  # that belong to one call: each input has a number of its own
RECENT = 40  # events that a failure shows
# Those whose functions do not have retries for everything that is done to their containers.
WITHOUT_BUDGET = ("once", "map_with_failures", "generator")


@dataclass
class Acknowledged:
    """A spawned call that was acknowledged."""

    call: Any
    wanted: list[int]
    cancelled: bool = False
    seen: dict[int, Any] = field(default_factory=dict[int, Any])


class WrongError(AssertionError):
    """What the model does not allow."""


def import_client() -> None:
    """Imports all that a program's calls import when they need it. pytest rewrites these modules as they are imported,
    and CPython 3.11 cannot parse in two threads at once (SystemError: AST constructor recursion depth mismatch)."""
    for package in (farcall.settings, farcall.spec, farcall.wire, farcall.sdk):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


class Load:
    """Calls without pause, one thread for each of `kinds`, until it is told to finish."""

    def __init__(self, app: Any, faults: Faults, rng: random.Random, kinds: Sequence[str]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.acknowledged: list[Acknowledged] = []
        self.unacknowledged = 0  # spawns of which nobody knows
        self.settled: set[int] = set()  # numbers whose result is recorded or whose call is cancelled
        self.never_ran: set[int] = set()
        self.kept: set[int] = set()  # numbers whose file is in the volume
        self.recent: deque[str] = deque(maxlen=RECENT)
        self.kinds = tuple(kinds)
        self._app = app
        self._faults = faults
        self._numbers = itertools.count(NUMBERS, NUMBERS)
        self._stop = threading.Event()
        import_client()
        self._threads = [
            threading.Thread(target=self._loop, args=(kind, random.Random(rng.random())), name=kind) for kind in kinds
        ]
        for thread in self._threads:
            thread.start()

    @property
    def succeeded(self) -> int:
        """Calls with the result that they should have."""
        return sum(count for outcome, count in self.outcomes.items() if ":" not in outcome)

    def go_on(self, calls: int, within: float = PATIENCE) -> None:
        """Returns when so many more calls have succeeded, or after so many seconds."""
        wanted, deadline = self.succeeded + calls, time.monotonic() + within
        while self.succeeded < wanted and time.monotonic() < deadline and not self.wrong:
            time.sleep(0.005)

    def go_round(self) -> None:
        """Returns when every kind of call has succeeded once more: with nothing done to it, all goes on."""
        before = self.outcomes.copy()
        deadline = time.monotonic() + PATIENCE
        while not self.wrong and (waiting := [one for one in self.kinds if self.outcomes[one] == before[one]]):
            if time.monotonic() > deadline:
                self.wrong.append(f"{waiting} do not go on")
            time.sleep(0.005)

    def finish(self) -> None:
        """No more calls; returns when those under way have ended."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)
            assert not thread.is_alive(), f"{thread.name} hangs; {self}"

    def check(self) -> None:
        """Fails the test where anything went wrong."""
        if self.wrong:
            pytest.fail(repr(self), pytrace=False)

    def note(self, event: str) -> None:
        """Something that happened, for whoever has to find out why a test failed."""
        self.recent.append(f"{time.monotonic():.3f} {event}")

    def __repr__(self) -> str:
        lines = [f"{dict(self.outcomes)}, kills {dict(self._faults.kills)}", *self.wrong[:5], "lately:", *self.recent]
        return "\n  ".join(lines)

    # --- judging

    def _loop(self, kind: str, rng: random.Random) -> None:
        work: Callable[[random.Random, int], str | None] = getattr(self, f"_{kind}")
        while not self._stop.is_set() and not self.wrong:
            number = next(self._numbers)
            since = self._faults.now()
            began = time.monotonic()
            try:
                outcome = work(rng, number) or kind
            except BaseException as error:
                outcome = self._judge(kind, number, since, error)
            if outcome is not None:
                self.outcomes[outcome] += 1
                self.note(f"{outcome} {number} after {time.monotonic() - began:.3f} s")

    def _judge(self, kind: str, number: int, since: Counter[str], error: BaseException) -> str | None:
        outcome = self._excuse(kind, since, error)
        if outcome is None:
            self.wrong.append(f"{kind} {number}: {type(error).__name__}: {error}"[:2000])
            self.note(self.wrong[-1])
        elif isinstance(error, errors.ConnectionLostError) and not error.may_have_run:
            self.never_ran.add(number)
        return outcome

    def _excuse(self, kind: str, since: Counter[str], error: BaseException) -> str | None:
        """What came of a call that began with `since`, None where the model does not allow it."""
        met = self._faults.met
        match error:
            case errors.ConnectionLostError() if met(since, "server"):
                return f"{kind}: lost"
            case errors.ConnectionLostError(may_have_run=False) if self._faults.just_died():
                return f"{kind}: lost"  # not sent: another thread was about to read the end of the connection
            case errors.ContainerCrashedError() if kind in WITHOUT_BUDGET and met(since, "container"):
                return f"{kind}: crashed"
            case errors.ContainerCrashedError() if kind == "generator" and met(since, "launcher"):
                return f"{kind}: crashed"
            case errors.ResourceExhaustedError() | OSError(errno=errno.ENOSPC) if met(since, "disk"):
                return f"{kind}: no room"
            case _:
                return None

    def _check(self, answer: Any, wanted: int, what: str) -> None:
        if not (isinstance(answer, tuple) and answer[0] == wanted):
            raise WrongError(f"{what} is {answer!r}, not {wanted}")

    # --- in memory

    def _remote(self, rng: random.Random, number: int) -> None:
        padding = bytes(rng.choice((0, 0, 100_000, 1_000_000)))
        self._check(self._app.square.remote(number, padding), number * number, f"square of {number}")

    def _once(self, rng: random.Random, number: int) -> None:
        self._check(self._app.once.remote(number), number * number, f"once {number}")

    def _flaky(self, rng: random.Random, number: int) -> None:
        self._check(self._app.flaky.remote(number), number * number, f"flaky {number}")

    def _map(self, rng: random.Random, number: int) -> None:
        function = rng.choice((self._app.square, self._app.beside, self._app.threaded, self._app.batch))
        numbers = range(number, number + rng.randint(1, 40))
        for one, answer in zip(numbers, function.map(numbers), strict=True):
            self._check(answer, one * one, f"{one} in a map")

    def _map_with_failures(self, rng: random.Random, number: int) -> None:
        since = self._faults.now()
        numbers = range(number, number + rng.randint(5, 20))
        ordered = rng.random() < 0.5
        answers = list(self._app.fussy.map(numbers, order_outputs=ordered, return_exceptions=True))
        left = {one: ValueError if one % 5 == 0 else one * one for one in numbers}
        excused = 0
        for place, answer in enumerate(answers):
            if isinstance(answer, ValueError):
                one, right = answer.args[0], left.pop(answer.args[0], None) is ValueError
            elif isinstance(answer, tuple):
                one = math.isqrt(answer[0])
                right = left.pop(one, None) == answer[0]
            else:
                excused += 1
                one, right = numbers[place], self._excuse("map_with_failures", since, answer) is not None
            if not right or (ordered and one != numbers[place]):
                raise WrongError(f"a map of {numbers} has {answer!r} at {place}")
        if len(left) != excused:
            raise WrongError(f"a map of {numbers} has no answer for {left}")

    def _generator(self, rng: random.Random, number: int) -> None:
        items = rng.randint(0, 200)
        stop = rng.choice((items, items, items // 2))
        wanted = number
        for item in itertools.islice(self._app.count.remote_gen(number, items), stop):
            if item != wanted:
                raise WrongError(f"item {item} of a generator, where {wanted} comes next")
            wanted += 1
        if wanted != number + stop:
            raise WrongError(f"{wanted - number} items of {stop}")

    def _nested(self, rng: random.Random, number: int) -> None:
        inputs = rng.randint(1, 10)
        answers = self._app.nested.remote(number, inputs)
        if [answer[0] for answer in answers] != [one * one for one in range(number, number + inputs)]:
            raise WrongError(f"nested {number}, {inputs}: {answers}")

    def _table(self, rng: random.Random, number: int) -> None:
        factor = rng.randint(1, 2)
        self._check(self._app.Table(factor=factor).multiply.remote(number), number * number * factor, "a product")

    def _volume(self, rng: random.Random, number: int) -> None:
        self._check(self._app.keep.remote(number), number * number, f"keep {number}")
        self.kept.add(number)

    # --- durable

    def _spawn(self, rng: random.Random, number: int) -> None:
        function = rng.choice((self._app.square, self._app.square, self._app.flaky, self._app.beside, self._app.batch))
        args = (number,)
        if function is self._app.square and rng.random() < 0.1:
            args = (number, bytes(2 * 2**20))  # large enough for a file of its own
        one = Acknowledged(self._spawned(lambda: function.spawn(*args)), [number * number])
        self._fetch_all(one, number)

    def _spawn_table(self, rng: random.Random, number: int) -> None:
        table = self._app.Table(factor=3)
        one = Acknowledged(self._spawned(lambda: table.multiply.spawn(number)), [3 * number * number])
        self._fetch_all(one, number)

    def _spawn_map(self, rng: random.Random, number: int) -> None:
        numbers = range(number, number + rng.randint(1, 100))
        function = rng.choice((self._app.square, self._app.threaded))
        one = Acknowledged(self._spawned(lambda: function.spawn_map(numbers)), [one * one for one in numbers])
        self._fetch_all(one, number)

    def _cancel(self, rng: random.Random, number: int) -> str:
        """A call that is cancelled has no result, or the one that it had before."""
        call = self._spawned(lambda: self._app.dawdle.spawn(number, rng.choice((0.0, 0.05, 0.5, 30.0))))
        one = Acknowledged(call, [number * number])
        time.sleep(rng.uniform(0.0, 0.5))
        asked_again(lambda: one.call.cancel(terminate_containers=rng.random() < 0.2), self._faults)
        one.cancelled = True
        self._fetch_all(one, number)
        return "cancel" if isinstance(one.seen[0], errors.InputCancelledError) else "cancelled too late"

    def _spawned(self, spawn: Callable[[], Any]) -> Any:
        try:
            return spawn()
        except (errors.ConnectionLostError, errors.ResourceExhaustedError):
            self.unacknowledged += 1
            raise

    def _fetch_all(self, one: Acknowledged, number: int) -> None:
        self.acknowledged.append(one)
        for index in range(len(one.wanted)):
            self.fetch(one, index)
        self.settled.update(range(number, number + len(one.wanted)))

    def fetch(self, one: Acknowledged, index: int) -> None:
        """Asks for a result, and compares it with what it must be and with what it was before."""
        answer: Any
        try:
            answer = asked_again(lambda: one.call.get(timeout=PATIENCE, index=index), self._faults)
        except errors.InputCancelledError as error:
            if not one.cancelled:
                raise
            answer = error
        else:
            self._check(answer, one.wanted[index], f"{one.call.object_id}[{index}]")
        before = one.seen.setdefault(index, answer)
        if before != answer and not (isinstance(before, errors.InputCancelledError) and type(before) is type(answer)):
            raise WrongError(f"{one.call.object_id}[{index}] was {before!r} and is {answer!r}")


def asked_again(ask: Callable[[], Any], faults: Faults) -> Any:
    """Asks until there is an answer, where the question was lost or could not be put for what was done."""
    deadline = time.monotonic() + PATIENCE
    while True:
        since = faults.now()
        try:
            return ask()
        except errors.ConnectionLostError:
            if not faults.met(since, "server") or time.monotonic() > deadline:
                raise
        except errors.ResourceExhaustedError:
            if not faults.met(since, "disk") or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def every_kind() -> Iterator[str]:
    """All there are."""
    yield from ("remote", "once", "flaky", "map", "map_with_failures", "generator", "nested", "table", "volume")
    yield from ("spawn", "spawn", "spawn_table", "spawn_map", "cancel")
