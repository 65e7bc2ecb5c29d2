"""Exceptions: type, message, frames and chains, as a caller in another process sees them."""

import asyncio
import dataclasses
import json
import linecache
import os
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farcall.errors import ConnectionLostError, DeserializationError, ExecutionError, FarcallError
from farcall.sdk import exceptions_codec
from farcall.sdk.exceptions_codec import dump_exception, load_exception

Ask = Callable[[str, Any], Any]

pytestmark = pytest.mark.usefixtures("no_leaks")


def travel(error: BaseException) -> Exception:
    return load_exception(*dump_exception(error))


def raised(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


class FormatsError(Exception):
    """Formats its message, so calling it with `args` would do that twice."""

    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"failed with {code} at {where}")
        self.code = code


class KeywordOnlyError(Exception):
    def __init__(self, *, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def __str__(self) -> str:
        return f"because {self.reason}"


class SlottedError(ValueError):
    __slots__ = ("position",)

    def __init__(self, position: int) -> None:
        self.position = position


class OwnReduceError(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a)
        self.b = b

    def __reduce__(self) -> Any:
        return type(self), (self.args[0], self.b)


class BrokenReduceError(Exception):
    def __reduce__(self) -> Any:
        return type(self)._missing, ()  # type: ignore[attr-defined]


class ReduceThatDoesNotLoadError(Exception):
    def __reduce__(self) -> Any:
        return int, ("no number",)


class NewWithArgumentsError(Exception):
    def __new__(cls, first: int, second: int) -> "NewWithArgumentsError":
        return super().__new__(cls, first)

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first)


class BadStrError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot say")


class Custom(ExceptionGroup[Exception]):
    def __new__(cls, message: str, members: list[Exception], extra: int = 0) -> "Custom":
        made = super().__new__(cls, message, members)
        made.extra = extra
        return made

    def __init__(self, message: str, members: list[Exception], extra: int = 0) -> None:
        super().__init__(message, members)

    extra: int


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    reason: str


# Types and their state


@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        ValueError(),
        KeyError("key"),
        FileNotFoundError(2, "No such file", "/nowhere"),
        OSError(5, "i/o", "a", None, "b"),
        OSError("only a message"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad byte"),
        SyntaxError("wrong", ("file.py", 3, 4, "text", 3, 6)),
        StopIteration(7),
        ImportError("no", name="module", path="/path"),
        ModuleNotFoundError("no", name="module"),
        AssertionError({"a": [1, 2]}),
        TimeoutError(),
        json.JSONDecodeError("bad", "{", 1),
        subprocess.CalledProcessError(3, ["cmd"], b"out"),
        FormatsError(3, "home"),
        KeywordOnlyError(reason="so"),
        SlottedError(9),
        OwnReduceError(1, 2),
        BrokenReduceError("kept", 1),
        ReduceThatDoesNotLoadError("kept", 2),
        NewWithArgumentsError(1, 2),
        FrozenError("cold"),
        ConnectionLostError("lost", may_have_run=False),
        ExecutionError("x", type_name="T", traceback_text="tb"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_arrives_as_the_same_type_with_its_state(error: Exception) -> None:
    loaded = travel(error)
    assert type(loaded) is type(error)
    assert loaded.args == error.args
    assert str(loaded) == str(error)
    assert vars(loaded) == vars(error)
    for name in (
        "errno",
        "strerror",
        "filename",
        "filename2",
        "value",
        "name",
        "path",
        "lineno",
        "reason",
        "position",
        "doc",
    ):
        assert getattr(loaded, name, None) == getattr(error, name, None)


@given(st.lists(st.one_of(st.integers(), st.text(), st.binary(), st.none(), st.lists(st.integers()))))
@settings(max_examples=50, deadline=None)
def test_any_arguments_arrive(args: list[Any]) -> None:
    for kind in (Exception, ValueError, RuntimeError, KeyError):
        assert travel(kind(*args)).args == tuple(args)


def test_local_classes_arrive() -> None:
    class LocalError(Exception):
        pass

    assert type(travel(LocalError("here"))) is LocalError


def test_attributes_that_cannot_be_pickled_are_left_behind_and_named() -> None:
    error = FormatsError(3, "home")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    loaded = travel(error)
    assert type(loaded) is FormatsError
    assert str(loaded) == "failed with 3 at home"
    assert loaded.code == 3
    assert not hasattr(loaded, "lock")
    assert "attribute 'lock' (_thread.lock) cannot be pickled" in loaded.__notes__[0]


def test_arguments_that_cannot_be_pickled_arrive_as_text() -> None:
    loaded = travel(ValueError("text", threading.Lock()))
    assert type(loaded) is ValueError
    assert loaded.args[0] == "text"
    assert loaded.args[1].startswith("<unlocked _thread.lock")
    assert "argument 2" in loaded.__notes__[0]


def test_a_class_that_cannot_be_imported_arrives_as_execution_error(peer: Ask, tmp_path: Path) -> None:
    path = tmp_path / "only_in_container.py"
    path.write_text("class Odd(Exception): pass\ndef main():\n    raise Odd('too', 'bad')\n")
    with pytest.raises(ExecutionError) as caught:
        peer("run", (str(path), "only_in_container", "main"))
    error = caught.value
    assert error.type_name == "only_in_container.Odd"
    assert str(error) == "only_in_container.Odd: ('too', 'bad')"
    assert f'File "{path}", line 3, in main\n    raise Odd(' in error.traceback_text
    assert error.traceback_text.endswith("only_in_container.Odd: ('too', 'bad')\n")
    assert "No module named 'only_in_container'" in error.__notes__[0]
    assert traceback.extract_tb(error.__traceback__)[-1].name == "main"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SystemExit(3), "SystemExit: 3"),
        (SystemExit(), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (asyncio.CancelledError("stop"), "asyncio.exceptions.CancelledError: stop"),
    ],
)
def test_what_would_end_a_process_arrives_as_execution_error(error: BaseException, text: str) -> None:
    loaded = travel(error)
    assert type(loaded) is ExecutionError
    assert str(loaded) == text
    assert loaded.type_name == text.partition(":")[0]
    assert not hasattr(loaded, "__notes__")


def test_sys_exit_in_another_process_is_caught_as_an_ordinary_error(peer: Ask, tmp_path: Path) -> None:
    path = tmp_path / "exits.py"
    path.write_text("import sys\ndef main():\n    sys.exit('goodbye')\n")
    with pytest.raises(ExecutionError, match=r"^SystemExit: goodbye$"):
        peer("run", (str(path), "exits", "main"))
    assert peer("echo", 1) == 1


def test_an_exception_that_cannot_be_printed() -> None:
    loaded = travel(BadStrError("kept"))
    assert type(loaded) is BadStrError
    assert loaded.args == ("kept",)


def test_an_exception_that_cannot_even_be_described() -> None:
    class WorstError(Exception):
        def __reduce__(self) -> Any:
            raise RuntimeError("no")

        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError("no")

    assert type(travel(WorstError("x"))) is WorstError


def test_messages_beyond_the_limit_are_trimmed_in_the_middle() -> None:
    whole = "a" * exceptions_codec.MESSAGE_LIMIT
    assert str(travel(ValueError(whole))) == whole
    error = ValueError("begin " + "x" * 3 * 1024 * 1024 + " end")
    error.add_note("n" * 3 * 1024 * 1024)
    loaded = travel(error)
    text = str(loaded)
    assert text.startswith("begin xxx")
    assert text.endswith("xxx end")
    assert "farcall left out 1,048,586 of 3,145,738 characters" in text
    assert "farcall left out" in loaded.__notes__[0]
    assert len(text) < exceptions_codec.MESSAGE_LIMIT + 200


def test_large_attributes_arrive() -> None:
    error = ValueError("with data")
    error.data = os.urandom(3_000_000)  # type: ignore[attr-defined]
    assert travel(error).data == error.data  # type: ignore[attr-defined]


def test_damaged_payloads_give_an_error_and_raise_none() -> None:
    assert isinstance(load_exception(b"nonsense"), DeserializationError)
    assert isinstance(load_exception(b""), FarcallError)
    from farcall.sdk.values import dumps

    for wrong in (None, [], [1], [(1, 2)], {"a": 1}):
        assert isinstance(load_exception(*dumps(wrong)), DeserializationError)


# Causes, contexts, notes, groups


def chain() -> None:
    try:
        try:
            {}["missing"]
        except KeyError as error:
            raise FormatsError(1, "first") from error
    except FormatsError:
        error = ValueError("second")
        error.add_note("a note")
        error.add_note("another")
        raise error  # noqa: B904 - the context is what is tested


def suppressed() -> None:
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        raise ValueError("clean") from None


def grouped() -> None:
    members: list[Exception] = [raised(chain), raised(suppressed), ExceptionGroup("inner", [TypeError("t")])]  # type: ignore[list-item]
    raise ExceptionGroup("outer", members)


def recursive(depth: int = 0) -> int:
    return recursive(depth + 1) + 1


@pytest.mark.parametrize("function", [chain, suppressed, grouped, recursive, lambda: json.loads("{")])
def test_prints_exactly_as_where_it_was_raised(function: Callable[[], Any]) -> None:
    error = raised(function)
    assert printed(travel(error)) == printed(error)


def test_identity_within_a_chain_is_kept() -> None:
    inner = KeyError("inner")
    outer = FormatsError(1, "here")
    outer.origin = inner  # type: ignore[attr-defined]
    outer.__cause__ = outer.__context__ = inner
    loaded = travel(outer)
    assert loaded.origin is loaded.__cause__ is loaded.__context__  # type: ignore[attr-defined]


def test_cycles_are_kept_and_end() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__context__, second.__context__ = second, first
    first.__cause__ = first
    second.owner = first  # type: ignore[attr-defined]
    first.child = second  # type: ignore[attr-defined]
    loaded = travel(first)
    assert loaded.__context__ is not None
    assert loaded.__context__.__context__ is loaded
    assert loaded.__cause__ is loaded
    assert loaded.child is loaded.__context__  # type: ignore[attr-defined]


def test_a_long_chain() -> None:
    error: Exception = ValueError(0)
    for number in range(1, 3000):
        following = ValueError(number)
        following.__context__ = error
        error = following
    loaded: BaseException | None = travel(error)
    count = 0
    while loaded is not None:
        count, loaded = count + 1, loaded.__context__
    assert count == 3000


def test_groups_with_members_that_are_no_exceptions_can_be_caught() -> None:
    loaded = travel(BaseExceptionGroup("mixed", [ValueError(1), KeyboardInterrupt("stop")]))
    assert type(loaded) is ExceptionGroup
    assert loaded.message == "mixed"
    assert [str(member) for member in loaded.exceptions] == ["1", "KeyboardInterrupt: stop"]


def test_groups_of_an_own_class() -> None:
    loaded = travel(Custom("own", [ValueError(1), TypeError(2)], extra=5))
    assert type(loaded) is Custom
    assert loaded.extra == 5
    assert [type(member) for member in loaded.exceptions] == [ValueError, TypeError]


def test_a_member_that_cannot_be_rebuilt_takes_no_other_with_it(peer: Ask, tmp_path: Path) -> None:
    path = tmp_path / "group_in_container.py"
    path.write_text(
        "class Odd(Exception): pass\n"
        "class OddGroup(ExceptionGroup): pass\n"
        "def main(): raise ExceptionGroup('g', [ValueError(1), Odd(2)])\n"
        "def odd(): raise OddGroup('g', [ValueError(1)]) from Odd(3)\n"
    )
    with pytest.raises(ExceptionGroup) as caught:
        peer("run", (str(path), "group_in_container", "main"))
    assert [type(member) for member in caught.value.exceptions] == [ValueError, ExecutionError]
    with pytest.raises(ExceptionGroup, match=r"group_in_container.OddGroup: g") as caught:
        peer("run", (str(path), "group_in_container", "odd"))
    assert [type(member) for member in caught.value.exceptions] == [ValueError]
    assert isinstance(caught.value.__cause__, ExecutionError)


# Frames


@pytest.fixture
def container_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "container" / "job.py"
    path.parent.mkdir()
    path.write_text(
        textwrap.dedent(
            """
            def helper(x):
                return (x
                        / 0)

            class Job:
                def run(self):
                    helper(1)

            def main():
                Job().run()
            """
        )
    )
    yield path
    linecache.clearcache()


def run_elsewhere(path: Path, **options: Any) -> bytes:
    """What `main` of the file raises in another process, encoded."""
    program = (
        "import sys, json, importlib.util\n"
        "from farcall.sdk.exceptions_codec import dump_exception\n"
        "spec = importlib.util.spec_from_file_location('job', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "try: module.main()\n"
        "except BaseException as error:\n"
        "    error = error.with_traceback(error.__traceback__.tb_next)\n"
        "    sys.stdout.buffer.write(dump_exception(error, **json.loads(sys.argv[2])).data)\n"
    )
    command = [sys.executable, "-c", program, str(path), json.dumps(options)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_frames_have_file_line_and_names(container_file: Path) -> None:
    error = load_exception(run_elsewhere(container_file))
    frames = traceback.extract_tb(error.__traceback__)
    assert [(frame.filename, frame.lineno, frame.name) for frame in frames] == [
        (str(container_file), 11, "main"),
        (str(container_file), 8, "run"),
        (str(container_file), 3, "helper"),
    ]
    assert frames[-1].line == "return (x"
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    assert innermost is not None
    assert innermost.tb_frame.f_code.co_qualname == "helper"
    assert innermost.tb_frame.f_globals["__name__"] == "job"
    assert (frames[-1].end_lineno, frames[-1].colno, frames[-1].end_colno) == (4, 12, 15)


def test_raising_adds_the_callers_frames_above_the_remote_ones(container_file: Path) -> None:
    error = load_exception(run_elsewhere(container_file))

    def call() -> None:
        raise error

    names = [frame.name for frame in traceback.extract_tb(raised(call).__traceback__)]
    assert names == ["raised", "call", "main", "run", "helper"]


def test_source_of_files_that_are_not_here_comes_along(container_file: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.py"
    container_file.rename(elsewhere)
    encoded = run_elsewhere(elsewhere)
    elsewhere.unlink()
    error = travel(load_exception(encoded))  # and once more, to who called the caller
    linecache.checkcache()
    assert "    Job().run()\n" in printed(error)


def test_file_names_become_the_callers(container_file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "job.py").write_text(container_file.read_text())
    error = load_exception(run_elsewhere(container_file, source_roots={str(container_file.parent): str(mine)}))
    assert f'File "{mine}/job.py", line 8, in run\n    helper(1)' in printed(error)


def test_another_file_by_the_same_name_does_not_lend_its_lines(container_file: Path) -> None:
    encoded = run_elsewhere(container_file)
    assert "(in the container)" not in printed(load_exception(encoded))
    container_file.write_text("# edited\n" * 20)
    linecache.clearcache()
    shown = printed(load_exception(encoded))
    assert f'File "{container_file} (in the container)", line 8, in run\n    helper(1)' in shown
    assert "edited" not in shown


def test_very_deep_tracebacks_lose_their_middle() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        error = raised(recursive)
        loaded = travel(error)
    finally:
        sys.setrecursionlimit(limit)
    frames = traceback.extract_tb(loaded.__traceback__)
    assert 3000 < len(frames) < 5000
    assert any("frames left out" in frame.name for frame in frames)
    assert frames[0].name == "raised"
    assert type(loaded) is RecursionError


def test_farcalls_own_frames_are_cut_from_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = compile("def run(function):\n    function()\n", "runner.py", "exec")
    names: dict[str, Any] = {"__name__": "farcall.runner.main"}
    exec(runner, names)

    def fail() -> None:
        raise ValueError

    error = raised(lambda: names["run"](fail))
    error = error.with_traceback(error.__traceback__.tb_next.tb_next)  # type: ignore[union-attr]
    assert [frame.name for frame in traceback.extract_tb(travel(error).__traceback__)] == ["fail"]
    monkeypatch.setenv("FARCALL_TRACEBACK", "full")
    assert [frame.name for frame in traceback.extract_tb(travel(error).__traceback__)] == ["run", "fail"]


def test_repeated_frames_are_carried_once() -> None:
    error = raised(recursive)
    payload = dump_exception(error)
    assert len(payload.data) < 20_000
    payload.close()
