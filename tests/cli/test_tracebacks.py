import io
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from farcall import errors
from farcall.cli.tracebacks import exit_code, format_error, is_ours, report


def raised(code: str, file: str = "/project/program.py") -> BaseException:
    """What `code` raises, as if it stood in `file`."""
    names: dict[str, object] = {"errors": errors, "call": _call}
    try:
        exec(compile(textwrap.dedent(code), file, "exec"), names)
    except BaseException as error:
        return error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
    raise AssertionError("it did not raise")


def _call(function: object) -> None:
    """Calls `function` from a file of farcall's."""
    ours = str(Path(errors.__file__).parent / "sdk" / "calls.py")
    exec(compile("function()", ours, "exec"), {"function": function})


def shown(error: BaseException, program: str | None = "program.py") -> str:
    stream = io.StringIO()
    report(error, stream=stream, program=program)
    return stream.getvalue()


def test_our_frames_are_hidden_and_the_users_stay() -> None:
    text = shown(raised("def work():\n    1 / 0\ncall(work)"))
    assert text.count('File "/project/program.py"') == 2
    assert "calls.py" not in text
    assert text.endswith("ZeroDivisionError: division by zero\n")


def test_hidden_in_causes_and_groups_too() -> None:
    text = shown(
        raised(
            """
            def inner():
                raise KeyError("k")
            try:
                call(inner)
            except KeyError as error:
                raise ExceptionGroup("g", [error]) from error
            """
        )
    )
    assert "calls.py" not in text
    assert "KeyError: 'k'" in text


def test_a_frame_of_a_containers_runner_is_ours() -> None:
    assert is_ours("/home/u/.local/share/farcall/runner/0.1.0-12345678/cp311-linux_x86_64-gnu/farcall/runner/main.py")
    assert is_ours("<frozen importlib._bootstrap>")
    assert not is_ours("/project/runner/farcall.py")
    assert not is_ours("/project/farcall/mine.py")


def test_everything_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    error = raised("def work():\n    1 / 0\ncall(work)")
    monkeypatch.setenv("FARCALL_TRACEBACK", "full")
    assert "calls.py" in shown(error)
    assert "calls.py" in format_error(error, full=True)


def test_call_and_container_are_named_with_the_log_command() -> None:
    error = raised("raise ValueError('x')")
    error.farcall_call_id, error.farcall_container_id = "fc-1", "ta-2"  # type: ignore[attr-defined]
    assert shown(error).splitlines()[-1] == "call fc-1 in container ta-2; its logs: farcall logs fc-1"


def test_errors_of_the_platform_are_one_message() -> None:
    assert shown(raised("raise errors.ConnectionError('no server')")) == "farcall: no server\n"
    assert shown(errors.InvalidError("wrong"), program=None) == "farcall: wrong\n"


def test_a_defect_of_ours_shows_all_and_says_so() -> None:
    ours = str(Path(errors.__file__).parent / "sdk" / "calls.py")
    text = shown(raised("raise RuntimeError('oops')", file=ours), program=None)
    assert "calls.py" in text
    assert "a defect of farcall" in text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError(), 1),
        (errors.InvalidError(""), 1),
        (errors.FunctionTimeoutError(""), 1),
        (errors.ContainerCrashedError(""), 1),
        (errors.ConnectionError(""), 3),
        (errors.ConnectionLostError(""), 3),
        (errors.VersionError(""), 3),
        (errors.InternalError(""), 3),
        (errors.ResourceExhaustedError(""), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def test_a_syntax_error_shows_the_line_only(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("x = (1,\n")
    try:
        compile(file.read_text(), str(file), "exec")
    except SyntaxError as error:
        error.with_traceback(None)
        text = shown(error)
    else:
        raise AssertionError
    assert text.splitlines()[0].strip() == f'File "{file}", line 1'
    assert "Traceback" not in text
    assert "SyntaxError: '(' was never closed" in text


def test_no_colour_in_files() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from farcall.cli.main import main; import sys; sys.exit(main(['nope']))"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
