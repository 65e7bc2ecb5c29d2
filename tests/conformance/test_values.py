"""Semantics: values and errors."""

import datetime
import decimal
import enum
import fractions
import hashlib
import os
import pathlib
import re
import threading
import time
import traceback
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import pytest
import values_app
from values_app import app  # noqa: F401 - the fixture runs it

import farcall
from farcall import errors

# --- values


class Colour(enum.Enum):
    RED = "red"


recursive: list[Any] = [1]
recursive.append(recursive)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**200),
        3.5,
        float("inf"),
        1 + 2j,
        "",
        "text, \N{SNOWMAN}, \0 and \ud800",
        b"",
        b"\x00\xff",
        bytearray(b"abc"),
        (),
        (1, (2, [3])),
        {1: {2: {3}}},
        frozenset({1}),
        range(3),
        slice(1, 2),
        ...,
        datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
        datetime.timedelta(microseconds=1),
        decimal.Decimal("1.10"),
        fractions.Fraction(1, 3),
        uuid.UUID(int=7),
        pathlib.PurePosixPath("/a/b"),
        re.compile("a+"),
        OrderedDict(a=1),
        defaultdict(list, a=[1]),
        Counter("abca"),
        deque([1, 2], 5),
        len,
        int,
        ValueError,
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_come_back_equal(value: Any) -> None:
    """Arguments and results travel by value."""
    result = values_app.echo.remote(value)
    assert type(result) is type(value)
    assert result == value


def test_what_travels_is_a_copy() -> None:
    """By value: the caller's object is another one, and what refers to itself still does."""
    value = [1, {"a": 2}]
    result = values_app.echo.remote(value)
    assert result == value
    assert result is not value
    assert result[1] is not value[1]
    loop = values_app.echo.remote(recursive)
    assert loop[1] is loop


def test_large_arrays_that_are_passed_on_are_copies_too() -> None:
    """What is not changed goes on in the memory it came in; what is changed is nobody else's."""
    numpy = pytest.importorskip("numpy")
    original = numpy.arange(1_000_000, dtype="float64")
    same = values_app.echo.remote(original)
    spawned = values_app.zero.spawn(same, 0, 10)
    zeroed = values_app.zero.remote(same, 999_990, 1_000_000)
    again = values_app.zero.remote(zeroed, 0, 0)
    same[500_000] = -1
    for one, zeros in ((zeroed, slice(999_990, None)), (again, slice(999_990, None)), (spawned.get(), slice(10))):
        expected = original.copy()
        expected[zeros] = 0
        assert numpy.array_equal(one, expected)
    assert numpy.array_equal(original, numpy.arange(1_000_000, dtype="float64"))
    assert (original != values_app.echo.remote(same)).sum() == 1


def test_code_that_pickle_refuses_travels() -> None:
    """cloudpickle where plain pickle cannot: lambdas, closures, local classes and their instances."""

    class Local:
        def __init__(self, n: int) -> None:
            self.n = n

        def double(self) -> int:
            return 2 * self.n

    offset = 10
    assert values_app.apply.remote(lambda x: x + offset, 1) == 11
    assert values_app.apply.remote(Local(4).double) == 8
    assert values_app.echo.remote(lambda: offset)() == 10
    assert values_app.type_and_value.remote(Local(1))[0] == "Local"


@pytest.mark.parametrize("size", [65_000, 65_535, 65_536, 65_537, 262_144, 5_000_001, 60_000_000])
def test_no_size_at_which_a_call_stops_working(size: int) -> None:
    """There is no size at which a call stops working; large values come whole, in both directions."""
    data = os.urandom(min(size, 1_000_000)) * (size // 1_000_000 or 1)
    data += bytes(size - len(data))
    assert values_app.digest.remote(data) == (size, hashlib.sha256(data).hexdigest())
    assert values_app.echo.remote(data) == data


def test_large_values_of_all_kinds() -> None:
    """Large buffers, text and many large parts in one value travel too."""
    value = {"text": "é" * 400_000, "parts": [bytes([n]) * 100_000 for n in range(40)], "list": list(range(200_000))}
    assert values_app.echo.remote(value) == value
    buffer = bytearray(os.urandom(300_000))
    back = values_app.echo.remote(buffer)
    assert back == buffer
    back[0] ^= 1  # it is the caller's own
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1_000_000, dtype="float64").reshape(1000, 1000)
    result = values_app.echo.remote(array)
    assert (result == array).all()
    result[0, 0] = -1  # writable, as the original was
    assert array[0, 0] == 0


def test_only_caller_and_container_unpickle(tmp_path: Path) -> None:
    """Only the caller and the container unpickle: the server's process, which could, never rebuilds a value."""
    seen = tmp_path / "rebuilt"
    seen.touch()
    value = values_app.Traced(str(seen))
    assert values_app.was_rebuilt_here.remote(value) == (True, False)
    assert seen.read_text() == ""
    back = values_app.a_value.remote(str(seen))
    assert back.rebuilt_in_container is False
    assert seen.read_text().split() == [str(os.getpid())]


# --- handles


def test_functions_survive_as_arguments_and_results() -> None:
    """A Function survives as argument and result and works on the other side."""
    assert values_app.call_remotely.remote(values_app.increment, 4) == 5
    function = values_app.a_function.remote()
    assert function.remote(1) == 2
    assert function.local(1) == 2


def test_instances_survive_as_arguments_and_results() -> None:
    """A class's instance survives as argument and result: all handles with equal parameters share its container."""
    counter = values_app.Counter(start=100)
    assert counter.add.remote(1) == 101
    assert values_app.add_to.remote(counter, 2) == 103
    assert values_app.a_counter.remote(100).add.remote(3) == 106


def test_calls_survive_as_arguments_and_results() -> None:
    """A FunctionCall survives as argument and result: either side can wait for its result."""
    assert values_app.wait_for.remote(values_app.increment.spawn(6)) == 7
    call = values_app.spawn_increment.remote(7)
    assert isinstance(call, farcall.FunctionCall)
    assert call.get(timeout=20) == 8


# --- exceptions


def test_an_exception_arrives_as_itself() -> None:
    """An ordinary exception arrives as the same type, with the remote frames in its traceback, file and line right."""
    with pytest.raises(LookupError, match="no such thing") as caught:
        values_app.raise_lookup_error.remote("no such thing")
    assert type(caught.value) is LookupError
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.name for frame in frames][-2:] == ["raise_lookup_error", "_deep"]
    assert frames[-1].filename == values_app.__file__
    line = Path(values_app.__file__).read_text().splitlines()[frames[-1].lineno - 1]
    assert "the line a user looks for" in line
    assert "the line a user looks for" in "".join(traceback.format_exception(caught.value))


def test_an_exception_of_the_users_own_class_arrives_with_its_attributes() -> None:
    """The same type also where its constructor takes other arguments than it keeps."""
    with pytest.raises(values_app.RefusedError, match="refused: too late") as caught:
        values_app.raise_refused.remote()
    assert (caught.value.reason, caught.value.code) == ("too late", 7)


def test_causes_contexts_and_notes_survive() -> None:
    """__cause__, __context__ and __notes__ survive."""
    with pytest.raises(KeyError) as caught:
        values_app.raise_chain.remote()
    context = caught.value.__context__
    assert isinstance(context, values_app.RefusedError)
    cause = context.__cause__
    assert isinstance(cause, ValueError)
    assert "not a number" in str(cause)
    assert cause.__notes__ == ["noted on the cause"]
    assert cause.__traceback__ is not None


def test_groups_survive() -> None:
    """An ExceptionGroup arrives as one, so that `except*` works."""
    caught: list[BaseException] = []
    try:
        values_app.raise_group.remote()
    except* values_app.RefusedError as group:
        caught += group.exceptions
    except* ValueError as group:
        caught += group.exceptions
    assert sorted(str(error) for error in caught) == ["one", "refused: two"]


def test_an_exception_that_cannot_be_rebuilt() -> None:
    """An exception that cannot be rebuilt as its class says arrives all the same, with its type and message."""
    with pytest.raises(Exception, match="gone") as caught:
        values_app.raise_unrebuildable.remote()
    name = getattr(caught.value, "type_name", type(caught.value).__name__)
    assert name.rpartition(".")[2] == "UnrebuildableError"


def test_an_exception_whose_class_cannot_be_imported() -> None:
    """A class that cannot be imported here: ExecutionError, with its name and the remote traceback as text."""
    with pytest.raises(errors.ExecutionError, match="made up there") as caught:
        values_app.raise_class_of_other_module.remote()
    assert caught.value.type_name == "made_there.OnlyThereError"
    assert "Traceback" in caught.value.traceback_text
    assert "in raise_class_of_other_module" in caught.value.traceback_text


def test_an_exception_of_a_local_class() -> None:
    """A class made up in the function travels with its code, as other values do."""
    with pytest.raises(Exception, match="made up here") as caught:
        values_app.raise_local_class.remote()
    assert type(caught.value).__name__ == "OnlyThereError"


@pytest.fixture
def fragile() -> Any:
    """A class whose one container is there, and must be the same one after the test."""
    instance = values_app.Fragile()
    before = instance.identity.remote()
    yield instance
    assert instance.identity.remote() == before, "the container was replaced"


def test_an_unpicklable_result(fragile: Any) -> None:
    """An unpicklable result is a SerializationError that names the offending part; the container lives on."""
    with pytest.raises(errors.SerializationError, match="bad") as caught:
        fragile.unpicklable_result.remote()
    assert "lock" in str(caught.value)


def test_an_unpicklable_exception(fragile: Any) -> None:
    """An exception with an unpicklable part arrives, naming the offending part; the container lives on."""
    with pytest.raises(values_app.RefusedError, match="it holds a lock") as caught:
        fragile.unpicklable_exception.remote()
    assert caught.value.code == 3
    notes = "\n".join(caught.value.__notes__)
    assert "'lock'" in notes
    assert "cannot be pickled" in notes


def test_unpicklable_arguments() -> None:
    """An unpicklable argument is a SerializationError here that names it."""
    with pytest.raises(errors.SerializationError, match=r"argument 1.*lock"):
        values_app.echo.remote(threading.Lock())
    with pytest.raises(errors.SerializationError, match=r"argument value.*'deep'"):
        values_app.echo.remote(value={"deep": [threading.Lock()]})


@pytest.mark.parametrize("code", [0, 3, None, "a message"])
def test_sys_exit_fails_the_input(fragile: Any, code: Any) -> None:
    """sys.exit() in user code fails that input with an error that `except Exception` catches; nobody exits."""
    with pytest.raises(errors.ExecutionError, match="SystemExit") as caught:
        fragile.exit.remote(code)
    assert caught.value.type_name == "SystemExit"
    if code is not None:
        assert str(code) in str(caught.value)


@pytest.mark.parametrize(
    ("method", "name"),
    [("interrupt", "KeyboardInterrupt"), ("base_exception", "Own"), ("generator_exit", "GeneratorExit")],
)
def test_base_exceptions_fail_the_input(fragile: Any, method: str, name: str) -> None:
    """KeyboardInterrupt and other BaseExceptions fail the input; they never exit the caller's process."""
    with pytest.raises(errors.ExecutionError) as caught:
        getattr(fragile, method).remote()
    assert caught.value.type_name.rpartition(".")[2] == name
    assert method in caught.value.traceback_text


def test_long_messages_arrive_whole() -> None:
    """An exception of any length arrives; up to 2 MiB whole."""
    with pytest.raises(ValueError, match=r"^<x+>$") as caught:
        values_app.raise_message.remote(1_500_000)
    assert len(str(caught.value)) == 1_500_000


def test_longer_messages_are_trimmed_in_the_middle() -> None:
    """Beyond 2 MiB a message is trimmed in the middle and says so."""
    with pytest.raises(ValueError, match="left out") as caught:
        values_app.raise_message.remote(5_000_000)
    text = str(caught.value)
    assert text.startswith("<x")
    assert text.endswith("x>")
    assert 2_000_000 < len(text) < 2_200_000


# --- starts and ends of containers


def test_a_failing_enter_hook_fails_the_call() -> None:
    """A failure in an @enter hook fails the call promptly with that traceback."""
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="the model is missing") as caught:
        values_app.FailingEnter().anything.remote()
    assert time.monotonic() - began < 40
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "begin"


@pytest.mark.parametrize("code", [0, 1, 77])
def test_a_container_that_exits(code: int) -> None:
    """A container that ends by its own doing fails the input that had started and says the exit code."""
    with pytest.raises(errors.ContainerCrashedError, match=rf"leave.*exited with code {code}\b"):
        values_app.leave.remote(code)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGTERM", "SIGUSR2"])
def test_a_container_that_a_signal_ends(name: str) -> None:
    """A signal that ends the container is named exactly."""
    import signal

    with pytest.raises(errors.ContainerCrashedError, match=rf"die_of.*{name}"):
        values_app.die_of.remote(getattr(signal, name).value)


def test_inputs_that_had_not_started_go_elsewhere() -> None:
    """Inputs handed out to a container that ends, but not started, run elsewhere. The one that brought it down fails,
    and so do those just before it whose results died with the container: none is run twice."""
    list(values_app.leave_at.map(range(200), kwargs={"at": -1}))  # short ones are handed out ahead now
    results = list(values_app.leave_at.map(range(1000), kwargs={"at": 500}, return_exceptions=True))
    failed = [index for index, result in enumerate(results) if isinstance(result, errors.ContainerCrashedError)]
    assert failed[-1] == 500
    assert len(failed) <= 256
    assert [result for index, result in enumerate(results) if index not in failed] == [
        index for index in range(1000) if index not in failed
    ]
