"""Bad input: each thing that users, their code or strangers can do wrong is a typed error that says what, where and
what next; the server and other containers go on undisturbed."""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bad_app
import pytest
from bad_app import app  # noqa: F401 - the fixture runs it

import farcall
from farcall import errors
from farcall.sdk import client as clients

if TYPE_CHECKING:
    from tests.conftest import Installation

Program = Callable[..., Path]


@pytest.fixture(scope="module")
def bystander() -> Any:
    """A class whose container counts its inputs, from before the first bad deed to after the last."""
    return bad_app.Bystander()


@pytest.fixture(autouse=True)
def undisturbed(bystander: Any) -> Iterator[None]:
    """After each test the same server serves, and the bystander's container is the one it was."""
    server = clients.current().status().pid
    count = bystander.next.remote()
    yield
    assert bystander.next.remote() == count + 1, "another container was disturbed"
    assert clients.current().status().pid == server, "the server was replaced"


def python(installation: "Installation", *arguments: Any, **options: Any) -> "subprocess.CompletedProcess[str]":
    environment = {**installation.environment, **options.pop("env", {})}
    return subprocess.run(
        [options.pop("executable", sys.executable), *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        **options,
    )


# --- values and exceptions


@pytest.mark.parametrize(
    "value",
    [threading.Lock(), {"a": {"b": sys._getframe()}}, bad_app.HostilePickle(), iter([])],
    ids=["lock", "frame", "hostile", "iterator"],
)
def test_unpicklable_arguments(value: Any) -> None:
    """An argument that cannot be pickled: SerializationError that names it; what can be pickled by luck may pass."""
    if type(value).__name__ == "list_iterator":
        assert list(bad_app.echo.remote(value)) == []
        return
    with pytest.raises(errors.SerializationError, match="argument 1"):
        bad_app.echo.remote(value)


@pytest.mark.parametrize("function", [bad_app.unpicklable_result, bad_app.hostile_result], ids=lambda one: one.name)
def test_unpicklable_results(function: Any) -> None:
    """A result that cannot be pickled: SerializationError that names the result."""
    with pytest.raises(errors.SerializationError, match="result"):
        function.remote()


def test_values_that_explode_when_they_are_rebuilt() -> None:
    """A value that cannot be rebuilt: DeserializationError with the reason, on whichever side that is."""
    with pytest.raises(errors.DeserializationError, match="it explodes when it is rebuilt"):
        bad_app.exploding_result.remote()
    with pytest.raises(errors.DeserializationError, match="it explodes when it is rebuilt"):
        bad_app.echo.remote(bad_app.HostileUnpickle())


def test_values_that_exit_when_they_are_rebuilt() -> None:
    """A value whose rebuilding calls sys.exit is a DeserializationError: neither container nor caller exits."""
    with pytest.raises(errors.DeserializationError, match="SystemExit: 5"):
        bad_app.echo.remote(bad_app.ExitingUnpickle())
    with pytest.raises(errors.DeserializationError, match="SystemExit: 5"):
        bad_app.exiting_result.remote()


def test_exceptions_that_cannot_be_rebuilt() -> None:
    """Exceptions with neither text nor pickle arrive with their type's name; a bomb they carry does not go off."""
    with pytest.raises(Exception) as caught:
        bad_app.raise_hostile.remote()
    assert "HostileError" in getattr(caught.value, "type_name", type(caught.value).__name__)
    with pytest.raises(Exception, match="it carries a bomb"):
        bad_app.raise_exiting.remote()


def test_wrong_arguments() -> None:
    """Wrong arguments: the TypeError Python makes of them."""
    with pytest.raises(TypeError, match=r"echo\(\) takes 1 positional argument but 2 were given"):
        bad_app.echo.remote(1, 2)
    with pytest.raises(TypeError, match=r"echo\(\) missing 1 required positional argument: 'value'"):
        bad_app.echo.spawn().get(timeout=20)
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        list(bad_app.echo.map([1], kwargs={"other": 1}))


# --- ends


def test_sys_exit() -> None:
    """sys.exit fails the input; in a thread it ends the thread."""
    with pytest.raises(errors.ExecutionError, match="SystemExit: 5"):
        bad_app.exit_with.remote(5)
    assert bad_app.exit_in_thread.remote() == "goes on"


@pytest.mark.parametrize(
    ("function", "arguments", "match"),
    [
        (bad_app.leave, (0,), "exited with code 0"),
        (bad_app.leave, (255,), "exited with code 255"),
        (bad_app.abort, (), "SIGABRT"),
        (bad_app.segfault, (), "SIGSEGV"),
        (bad_app.divide_by_zero_in_c, (), "SIGFPE"),
        (bad_app.kill_self, (), "SIGKILL"),
    ],
    ids=["exit 0", "exit 255", "abort", "segfault", "fpe", "kill"],
)
def test_ends_of_containers(function: Any, arguments: tuple[Any, ...], match: str) -> None:
    """Exit codes and signals are each named exactly, with function, container and the log command."""
    with pytest.raises(errors.ContainerCrashedError, match=match) as caught:
        function.remote(*arguments)
    assert type(caught.value) is errors.ContainerCrashedError
    assert function.name in str(caught.value)
    assert "farcall logs ta-" in str(caught.value)
    assert caught.value.farcall_container_id in str(caught.value)  # type: ignore[attr-defined]


def test_out_of_memory(out_of_memory: type[Exception]) -> None:
    """Out of memory is named with limit and peak, and is no SIGKILL; a child's is the child's alone."""
    with pytest.raises(out_of_memory) as caught:
        bad_app.eat_memory.remote()
    child = bad_app.eat_memory_in_a_child.remote()
    if out_of_memory is errors.OutOfMemoryError:
        assert re.search(r"eat_memory.*128 MiB \(peak 12\d MiB\)", str(caught.value))
        assert child == -9


def test_recursion_and_files() -> None:
    """Endless recursion is a RecursionError with a traceback of bearable length; too many files are an OSError."""
    with pytest.raises(RecursionError) as caught:
        bad_app.recurse_forever.remote()
    import traceback

    assert len("".join(traceback.format_exception(caught.value))) < 20_000
    with pytest.raises(OSError, match="Too many open files"):
        bad_app.too_many_files.remote()


def test_a_function_that_takes_the_runners_descriptors_away() -> None:
    """A function that closes all descriptors loses its container, and its call is told, once."""
    with pytest.raises(errors.ContainerCrashedError, match="close_everything brought its container down"):
        bad_app.close_everything.remote()


def test_a_function_that_closes_the_connection_and_goes_on() -> None:
    """A container that lives on without its connection is ended, and its call is told why."""
    with pytest.raises(errors.ContainerCrashedError, match="closed its connection to farcall"):
        bad_app.close_everything_and_wait.remote()


def test_a_generator_that_sends_what_nobody_asked_for() -> None:
    """A container that passes by the backpressure is ended: its items would pile up in the server."""
    with pytest.raises(errors.ContainerCrashedError, match="floods was ended: it sent items that nobody had asked"):
        for _ in bad_app.floods.remote_gen():
            time.sleep(0.01)  # its consumer takes its time


def test_processes_that_a_function_leaves_behind() -> None:
    """Threads and forks without end are stopped at the container's pids limit; children left behind end with the
    container."""
    assert 100 < bad_app.thread_bomb.remote() < 5_000
    assert bad_app.leave_children.remote() == "left"


def test_a_container_that_stops_itself_is_timed_out() -> None:
    """A process that is stopped is replaced when its time is up."""
    other = farcall.App("frozen")
    stop = other.function(timeout=1, name="stop_self", include_source=True)(bad_app.stop_self.raw)
    with other.run(), pytest.raises(errors.FunctionTimeoutError, match="stop_self"):
        stop.remote()


# --- output


def test_output_without_end_or_newline() -> None:
    """Endless output without a newline neither fills memory nor holds up other containers for long; it ends with the
    function."""
    assert bad_app.echo.remote(1) == 1
    began = time.monotonic()
    call = bad_app.print_forever.spawn()
    while bad_app.print_forever.get_current_stats().num_running_inputs == 0:
        time.sleep(0.01)
    for _ in range(20):
        assert bad_app.echo.remote(1) == 1
    while time.monotonic() - began < 2:  # by then it has been held back for a while
        assert bad_app.echo.remote(1) == 1
    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    bad_app.Door().open.remote()
    assert call.get(timeout=60) > 0


def test_long_lines() -> None:
    """Lines of 10 MB pass, in pieces or with a counted gap."""
    assert bad_app.print_long_lines.remote() == 3


def test_control_sequences(connected: "Installation", program: Program) -> None:
    """Control sequences other than colour do not reach the user's terminal; bytes that are no text do no harm."""
    path = program(f"""
        import sys
        sys.path.insert(0, {str(Path(bad_app.__file__).parent)!r})
        import farcall
        from bad_app import app, print_controls

        @app.local_entrypoint()
        def main():
            print_controls.remote()
    """)
    done = connected.farcall("run", path)
    assert "red" in done.stdout
    assert "end" in done.stdout
    assert "not" in done.stdout
    assert "surrogate" in done.stdout
    for forbidden in ("\x1b[2J", "\x1b]0", "\x07", "\b", "\0", "10;10H"):
        assert forbidden not in done.stdout


def test_closed_output() -> None:
    """A function that closes its output still answers; the next input too."""
    closer = bad_app.Closer()
    assert closer.close_output.remote() is None
    assert closer.next.remote() == "goes on"


# --- programs


def test_a_syntax_error_in_the_script(connected: "Installation", program: Program) -> None:
    """A syntax error is shown as Python shows it, without our frames, with status 1."""
    path = program("import farcall\napp = farcall.App(\ndef broken(:\n    pass\n")
    done = connected.farcall("run", path, check=False)
    assert done.returncode == 1
    assert "SyntaxError" in done.stderr
    assert str(path) in done.stderr
    assert "site-packages" not in done.stderr
    assert "/farcall/" not in done.stderr


def test_a_missing_file(connected: "Installation", program: Program) -> None:
    """A missing script is wrong usage and names the nearest; a file missing in the container is FileNotFoundError."""
    path = program("", "present.py")
    done = connected.farcall("run", path.parent / "presnt.py", check=False)
    assert done.returncode == 2
    assert "present.py" in done.stderr
    with pytest.raises(FileNotFoundError, match="/there/is/none"):
        bad_app.open_missing_file.remote()


def test_an_import_error_in_the_container(connected: "Installation", program: Program) -> None:
    """An import error in a function is its error; one at the top of the module fails each call promptly with it."""
    with pytest.raises(ModuleNotFoundError, match="module_that_is_nowhere"):
        bad_app.needs_missing_module.remote()
    path = program(
        """
        import farcall

        app = farcall.App("import-error")

        if not farcall.is_local():
            import module_that_is_nowhere

        @app.function()
        def one():
            return 1

        if __name__ == "__main__":
            with app.run():
                for _ in range(2):
                    try:
                        one.remote()
                    except ModuleNotFoundError as error:
                        import traceback
                        print(error.name, traceback.extract_tb(error.__traceback__)[-1].line)
        """
    )
    done = python(connected, path)
    assert done.stdout == "module_that_is_nowhere import module_that_is_nowhere\n" * 2, done.stderr


def test_a_crash_at_import(connected: "Installation", program: Program) -> None:
    """A module that ends the process when the container imports it: an error that says how it ended, for each call."""
    path = program(
        """
        import os
        import farcall

        app = farcall.App("import-crash")

        if not farcall.is_local():
            os._exit(11)

        @app.function()
        def one():
            return 1

        if __name__ == "__main__":
            with app.run():
                for _ in range(2):
                    try:
                        one.remote()
                    except farcall.errors.ContainerStartError as error:
                        print(error)
        """
    )
    lines = python(connected, path).stdout.splitlines()
    assert len(lines) == 2
    assert all("one" in line and "exited with code 11" in line and "importing" in line for line in lines)


def test_a_script_that_changes_or_goes_while_it_runs(connected: "Installation", program: Program) -> None:
    """A script deleted under its running app: containers see it as it was when the app began."""
    path = program(
        """
        import os, sys
        import farcall

        app = farcall.App("vanishing")

        @app.function()
        def one():
            return 1

        if __name__ == "__main__":
            with app.run():
                os.unlink(__file__)
                print(one.remote())
        """,
        "vanishing.py",
    )
    done = python(connected, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"


# --- strangers


def server_socket() -> Path:
    """Where programs of this user find the server, or the link to it."""
    from farcall import settings
    from farcall.sdk import client, elsewhere

    url = client.server_url()
    return elsewhere.link_socket(url) if url else settings.paths().server_socket


def stranger() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(60)
    sock.connect(str(server_socket()))
    return sock


def test_the_socket_is_the_users_own() -> None:
    """Nobody else may connect: the socket and its directory are the user's alone."""
    path = server_socket()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\0" * 4096,
        b"\xff" * 100_000,
        (16 * 1024 * 1024 - 1).to_bytes(4, "little"),
        (10).to_bytes(4, "little") + b"short",
        (1).to_bytes(4, "little") + b"\xc1",
        (5 | 64 << 24).to_bytes(4, "little") + b"hello",
    ],
    ids=["nothing", "http", "zeros", "ones", "huge length", "cut off", "no msgpack", "claims descriptors"],
)
def test_frames_from_a_stranger(data: bytes) -> None:
    """Whatever a stranger sends, and however he leaves, the server goes on."""
    for polite in (True, False):
        with stranger() as sock:
            sock.sendall(data)
            if polite:
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass


def test_random_and_mutated_frames(rng: random.Random) -> None:
    """Thousands of random and mutated frames, with and without a greeting, are refused one by one."""
    from farcall.wire import messages
    from farcall.wire.frames import FrameEncoder

    encode = FrameEncoder().encode
    good = [
        encode(messages.Hello(messages.PROTOCOL_VERSION, "0", "client", 1)),
        encode(messages.ServerStatus(1)),
        encode(messages.Submit("fc-x", "fu-x", "", "remote", [messages.Input(0, b"data", 0)], b"", "")),
        encode(messages.GetOutput(2, "fc-x", 0, 0)),
        encode(messages.CancelCall(3, "fc-x")),
        encode(messages.StopApp(4, "ap-x", 1.0)),
    ]
    for round_ in range(20):
        with stranger() as sock:
            if round_ % 2:
                sock.sendall(good[0])
            for _ in range(200):
                frame = bytearray(rng.choice(good))
                for _ in range(rng.randrange(4)):
                    frame[rng.randrange(4, len(frame))] = rng.randrange(256)
                try:
                    sock.sendall(frame)
                except OSError:
                    break  # it has had enough of us


def test_a_stranger_that_never_reads(bystander: Any) -> None:
    """A peer that asks and never reads does not hold up the others."""
    from farcall.wire import messages
    from farcall.wire.frames import FrameEncoder

    encode = FrameEncoder().encode
    with stranger() as sock:
        sock.settimeout(0.5)
        sock.sendall(encode(messages.Hello(messages.PROTOCOL_VERSION, "0", "client", 1)))
        request = encode(messages.ServerStatus(1)) * 100
        try:
            for _ in range(1000):
                sock.sendall(request)
        except TimeoutError:
            pass  # it takes no more before we read
        began = time.monotonic()
        assert bad_app.echo.remote(1) == 1
        assert time.monotonic() - began < 20


def test_calls_of_what_is_not_there() -> None:
    """Ids of functions, calls and apps that do not exist are NotFoundErrors that name them."""
    with pytest.raises(errors.NotFoundError, match="fu-0000000000000000000000"):
        farcall.Function.from_id("fu-0000000000000000000000").remote()
    with pytest.raises(errors.NotFoundError, match="fc-0000000000000000000000"):
        farcall.FunctionCall.from_id("fc-0000000000000000000000").get(timeout=1)


# --- servers and systems

HELLO = """
import farcall

app = farcall.App("hello")


@app.function()
def square(x):
    return x * x


@app.local_entrypoint()
def main():
    print(square.remote(3))


if __name__ == "__main__":
    with app.run():
        main()
"""


def servers_of(installation: "Installation") -> list[int]:
    """The server processes that live on that state directory."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"farcall.server.main" in (entry / "cmdline").read_bytes():
                mine = f"FARCALL_STATE_DIR={installation.environment['FARCALL_STATE_DIR']}".encode()
                if mine in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        except OSError:
            continue  # it has ended, or is another user's
    return found


def test_two_servers_on_one_state_directory(
    installation: "Installation", program: Program, eventually: Callable[..., None]
) -> None:
    """Programs that start at once with no server: one server is started, and all of them use it. A second one started
    by force ends and says who has the directory."""
    path = program(HELLO)
    started = [
        subprocess.Popen([sys.executable, path], env=installation.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate(timeout=60)[0] for process in started] == ["9\n"] * 4
    eventually(lambda: len(servers_of(installation)) == 1)  # others that were started have found it, and end
    read, write = os.pipe()
    second = subprocess.run(
        [sys.executable, "-c", f"from farcall.server.main import main; main({write})"],
        env=installation.environment,
        pass_fds=(write,),
        capture_output=True,
        text=True,
        timeout=30,
    )
    os.close(write)
    with os.fdopen(read) as said:
        word = said.read()
    assert second.returncode == 3
    assert word.startswith("conflict")
    assert "state" in word
    assert python(installation, path).stdout == "9\n"


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtual environment whose packages are those of the tests, and one module of its own."""
    made = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    [packages] = made.glob("lib/python*/site-packages")
    theirs = [entry for entry in sys.path if entry.endswith("site-packages")]
    theirs.append(str(Path(farcall.__file__).parent.parent))  # an editable installation is in no site-packages
    (packages / "tests.pth").write_text("\n".join(theirs) + "\n")
    (packages / "thing.py").write_text("VERSION = 1\n")
    return made


USES_VENV = """
import sys
import farcall

app = farcall.App("in-venv")


@app.function()
def version():
    import thing
    return thing.VERSION, sys.prefix


if __name__ == "__main__":
    with app.run():
        print("running", flush=True)
        sys.stdin.readline()
        try:
            print(*version.remote())
        except farcall.errors.FarcallError as error:
            print(type(error).__name__, error)
"""


def test_a_venv_that_is_upgraded_under_a_running_server(
    installation: "Installation", program: Program, venv: Path
) -> None:
    """A package upgraded while the server runs: the next run has the new one."""
    path = program(USES_VENV)
    executable = venv / "bin" / "python"
    assert python(installation, path, executable=executable).stdout == f"running\n1 {venv}\n"
    [thing] = venv.glob("lib/python*/site-packages/thing.py")
    thing.unlink()
    thing.write_text("VERSION = 22\n")
    assert python(installation, path, executable=executable).stdout == f"running\n22 {venv}\n"


def test_a_venv_that_is_deleted_under_a_running_server(
    installation: "Installation", program: Program, venv: Path
) -> None:
    """A venv deleted under the server that it started and under a program that runs: an error that names the
    interpreter, or an answer; other programs go on with the same server."""
    path = program(USES_VENV)
    executable = venv / "bin" / "python"
    process = subprocess.Popen(
        [executable, path],
        env=installation.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    shutil.rmtree(venv)
    out, err = process.communicate("\n", timeout=60)
    assert process.returncode == 0, err
    assert str(venv) in out
    hello = program(HELLO)
    assert python(installation, hello).stdout == "9\n"
    assert len(servers_of(installation)) == 1


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_a_system_other_than_linux(installation: "Installation", program: Program, system: str) -> None:
    """Elsewhere an embedded server cannot be: the error says so and names what works; --local works."""
    path = program(HELLO)
    begin = textwrap.dedent(f"""
        import sys, asyncio, subprocess, socket, platform, signal, tempfile, shutil, multiprocessing
        sys.platform = {system!r}
    """)
    done = python(installation, "-c", begin + f"import runpy\nrunpy.run_path({str(path)!r}, run_name='__main__')")
    assert done.returncode == 1
    assert "UnimplementedError" in done.stderr
    assert "Linux only" in done.stderr
    assert system in done.stderr
    assert "farcall run --local" in done.stderr
    run_local = f"from farcall.cli.main import main\nsys.exit(main(['run', '--local', {str(path)!r}]))"
    done = python(installation, "-c", begin + run_local)
    assert done.stdout == "9\n", done.stderr
