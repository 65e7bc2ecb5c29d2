"""Semantics: apps. What there is to deploy and to serve has no state yet that could be tested."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import farcall
from farcall import errors
from farcall.sdk import client as clients

if TYPE_CHECKING:
    from tests.conftest import Installation

Program = Callable[..., Path]


@pytest.fixture
def start(connected: "Installation") -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a program or module as a process of its own; whatever is left of it is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: Any, **options: Any) -> "subprocess.Popen[str]":
        environment = {**connected.environment, **options.pop("env", {})}
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def execute(start: Callable[..., "subprocess.Popen[str]"]) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs a program or module to its end."""

    def run(*arguments: Any, check: bool = True, **options: Any) -> "subprocess.CompletedProcess[str]":
        process = start(*arguments, **options)
        out, err = process.communicate(timeout=90)
        done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
        assert not check or done.returncode == 0, out + err
        return done

    return run


def state_of(app_id: str) -> str | None:
    """The state of a running app, None where it does not run."""
    return next((report.state for report in clients.current().status().apps if report.app_id == app_id), None)


# --- states


def test_states_of_an_ephemeral_app() -> None:
    """app.run() is a context manager: the app is ephemeral within it, and stopped and gone after it."""
    app = farcall.App("ephemeral")
    function = app.function(serialized=True, name="one")(lambda: 1)
    assert app.app_id is None
    assert not app.is_running
    with app.run() as running:
        assert running is app
        assert app.is_running
        assert app.app_id is not None
        assert app.app_id.startswith("ap-")
        assert state_of(app.app_id) == "ephemeral"
        assert function.remote() == 1
    assert not app.is_running
    assert state_of(app.app_id) is None
    with pytest.raises(errors.InvalidError, match="not running"):
        function.remote()


def test_an_app_runs_again() -> None:
    """The same app can run again; nested it cannot, and the error says so."""
    app = farcall.App("again")
    function = app.function(serialized=True, name="one")(lambda: 1)
    ids: set[str | None] = set()
    for _ in range(2):
        with app.run():
            ids.add(app.app_id)
            assert function.remote() == 1
            with pytest.raises(errors.InvalidError, match="nested"), app.run():
                pass
            assert function.remote() == 1
    assert len(ids) == 2


def test_an_app_in_an_event_loop() -> None:
    """`async with app.run()` and the plain form inside a running loop both work."""
    app = farcall.App("in-a-loop")
    function = app.function(serialized=True, name="one")(lambda: 1)

    async def main() -> list[int]:
        async with app.run():
            first = await function.remote.aio()
        with app.run():
            return [first, await function.remote.aio()]

    assert asyncio.run(main()) == [1, 1]


def test_an_error_in_the_block_stops_the_app() -> None:
    """The app stops however the block ends, and the block's error is the one raised."""
    app = farcall.App("failing")
    app.function(serialized=True, name="one")(lambda: 1)
    with pytest.raises(KeyError, match="in the block"), app.run():
        app_id = app.app_id
        raise KeyError("in the block")
    assert app_id is not None
    assert state_of(app_id) is None


DETACHED = """
import farcall, sys, time

app = farcall.App("detached")


@app.function()
def slowly(x):
    time.sleep(1)
    return 2 * x


if __name__ == "__main__":
    with app.run(detach=True):
        print(app.app_id, slowly.spawn(21).object_id)
"""


def test_a_detached_app_goes_on(program: Program, execute: Any, connected: "Installation") -> None:
    """A detached app goes on after the block and the process; its calls finish."""
    app_id, call_id = execute(program(DETACHED)).stdout.split()
    assert state_of(app_id) == "detached"
    assert farcall.FunctionCall.from_id(call_id).get(timeout=30) == 42
    clients.current().stop_app(app_id, 1.0)
    assert state_of(app_id) is None


BLOCKING = """
import farcall, sys, time

app = farcall.App("blocking")


@app.cls()
class Blocking:
    @farcall.method()
    def block(self):
        print("it runs", flush=True)
        time.sleep(60)

    @farcall.exit()
    def end(self):
        print("exit hook", flush=True)


@app.local_entrypoint()
def main():
    print(app.app_id, flush=True)
    Blocking().block.remote()


if __name__ == "__main__":
    with farcall.enable_output(), app.run(detach="detach" in sys.argv):
        main()
"""


def test_ctrl_c_stops_an_ephemeral_app(program: Program, start: Any) -> None:
    """Local Ctrl-C stops an ephemeral app and its containers, whose exit hooks run."""
    process = start(program(BLOCKING))
    app_id = process.stdout.readline().strip()
    assert process.stdout.readline() == "it runs\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert out == "exit hook\n"
    assert state_of(app_id) is None


def test_ctrl_c_leaves_a_detached_app(program: Program, start: Any) -> None:
    """Ctrl-C leaves a detached app running."""
    process = start(program(BLOCKING), "detach")
    app_id = process.stdout.readline().strip()
    assert process.stdout.readline() == "it runs\n"
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert state_of(app_id) == "detached"
    clients.current().stop_app(app_id, 1.0)


def test_a_killed_program_takes_its_app_along(program: Program, start: Any, eventually: Callable[..., None]) -> None:
    """An ephemeral app ends with its program, even when that is killed."""
    process = start(program(BLOCKING))
    app_id = process.stdout.readline().strip()
    assert process.stdout.readline() == "it runs\n"
    process.kill()
    eventually(lambda: state_of(app_id) is None)


# --- source


def test_a_script_mounts_its_own_file(program: Program, execute: Any, tmp_path: Path) -> None:
    """A script mounts that file and no other; what is beside it is not there, and the error for a module that exists
    locally says which add_local_python_source line would fix it."""
    program("VALUE = 7\n", "beside.py")
    path = program(
        """
        import os
        import farcall

        app = farcall.App("script")

        @app.function()
        def listing():
            return sorted(name for name in os.listdir(os.path.dirname(__file__)) if name.endswith(".py")), __name__

        @app.function()
        def use():
            import beside
            return beside.VALUE

        image = farcall.Image.host().add_local_python_source("beside")

        @app.function(image=image)
        def use_added():
            import beside
            return beside.VALUE

        if __name__ == "__main__":
            with app.run():
                print(listing.remote())
                try:
                    use.remote()
                except ModuleNotFoundError as error:
                    print(*error.__notes__)
                print(use_added.remote())
        """,
        "script.py",
    )
    lines = execute(path).stdout.splitlines()
    assert lines[0] == "(['script.py'], 'script')"
    assert 'add_local_python_source("beside")' in lines[1]
    assert lines[2] == "7"


@pytest.mark.parametrize("name", ["v1.2.py", "my-prog.v2.py"])
def test_a_script_with_dots_in_its_name(program: Program, execute: Any, name: str) -> None:
    """What is no module's name is still a script's; its classes are the same on both sides."""
    path = program(
        """
        import dataclasses
        import farcall

        app = farcall.App("dots")

        @dataclasses.dataclass
        class Point:
            x: int

        @app.function()
        def move(point):
            assert type(point) is Point
            return Point(point.x + 1)

        @app.local_entrypoint()
        def main():
            print(move.remote(Point(1)) == Point(2), [type(each) is Point for each in move.map([Point(1)])])

        if __name__ == "__main__":
            with app.run():
                main()
        """,
        name,
    )
    assert execute(path).stdout == "True [True]\n"
    assert execute("-m", "farcall", "run", path).stdout == "True [True]\n"


def test_hints_for_what_a_container_does_not_have(program: Program, execute: Any) -> None:
    """A file, a module, a terminal that is only here, or nowhere: the error says what to do; so does one for a result
    that cannot be sent."""
    path = program("""
        import threading
        import farcall

        app = farcall.App("hints")

        @app.function()
        def read(path):
            return open(path).read()

        @app.function()
        def use():
            import there_is_no_such_module

        @app.function()
        def ask():
            return input()

        @app.function()
        def debug():
            breakpoint()

        @app.function()
        def lock():
            return [threading.Lock()]

        @app.function()
        def nested(path):
            return read.remote(path)

        if __name__ == "__main__":
            with app.run():
                data = __file__ + ".data"
                for function, *args in (
                    (read, data), (read, "/no/such/file"), (nested, data), (use,), (ask,), (debug,), (lock,)
                ):
                    try:
                        function.remote(*args)
                    except Exception as error:
                        print(type(error).__name__, error, getattr(error, "__notes__", []))
        """)
    path.with_name(path.name + ".data").write_text("")
    lines = [line for line in execute(path).stdout.splitlines() if "Error" in line or line.startswith("BdbQuit")]
    read, nowhere, nested, use, ask, debug, lock = lines
    for each in (read, nested):
        assert each.count("is on your machine") == 1
        assert "add_local_file" in each
    assert nowhere.endswith("[]")
    assert "-m pip install there_is_no_such_module" in use
    assert "no standard input" in ask
    assert "farcall run --local FILE" in debug
    assert lock.startswith("SerializationError result of lock[0]: cannot pickle")
    assert "a function can return plain data" in lock


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with a package of several modules, one of them a program."""
    files = {
        "shop/__init__.py": "NAME = 'shop'\n",
        "shop/prices.py": "def price(): return 5\n",
        "shop/sub/__init__.py": "",
        "shop/sub/main.py": textwrap.dedent("""
            import farcall
            from shop.prices import price
            from ..prices import price as the_same

            app = farcall.App("package")

            class Price:
                def __init__(self, n): self.n = n

            @app.function()
            def total(n):
                from shop import NAME
                assert the_same is price
                return NAME, n * price(), __name__

            @app.function()
            def priced(p):
                return Price(p.n + 1)

            @app.local_entrypoint()
            def main():
                print(total.remote(3), priced.remote(Price(1)).n)

            if __name__ == "__main__":
                with app.run():
                    main()
        """),
    }
    for name, text in files.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "project"


@pytest.mark.parametrize("runtime", ["native", "process"])
@pytest.mark.parametrize("how", [["-m"], ["-m", "farcall", "run", "-m"]], ids=["python -m", "farcall run -m"])
def test_a_package_mounts_its_top_level_package(execute: Any, package: Path, how: list[str], runtime: str) -> None:
    """A package (-m) mounts its top-level package; relative imports work, and classes are the same on both sides."""
    done = execute(*how, "shop.sub.main", cwd=package, env={"FARCALL_RUNTIME": runtime})
    assert done.stdout == "('shop', 15, 'shop.sub.main') 2\n"


def test_local_directories(program: Program, execute: Any, tmp_path: Path) -> None:
    """add_local_dir mounts a directory, without what is ignored, to be read and not to be written."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "words.txt").write_text("some words")
    (folder / "words.tmp").write_text("half of them")
    path = program(f"""
        import os

        import farcall

        image = farcall.Image.host().add_local_dir({str(folder)!r}, "/data", ignore=["*.tmp"])
        app = farcall.App("dirs", image=image)

        @app.function()
        def read():
            return os.listdir("/data"), open("/data/words.txt").read()

        @app.function()
        def write():
            open("/data/words.txt", "w").write("changed")

        if __name__ == "__main__":
            with app.run():
                print(read.remote())
                try:
                    write.remote()
                except OSError as error:
                    print(type(error).__name__, error.errno)
    """)
    assert execute(path).stdout == "(['words.txt'], 'some words')\nOSError 30\n"
    assert (folder / "words.txt").read_text() == "some words"


def test_include_source_false(program: Program, execute: Any) -> None:
    """include_source=False mounts nothing of the program: its import fails, naming the module."""
    path = program(
        """
        import farcall

        app = farcall.App("no-source")

        @app.function(include_source=False)
        def here():
            return 1

        if __name__ == "__main__":
            with app.run():
                try:
                    here.remote()
                except ModuleNotFoundError as error:
                    print(error)
        """,
        "without.py",
    )
    assert "without" in execute(path).stdout


def test_a_program_that_runs_its_app_at_the_top_level(program: Program, execute: Any) -> None:
    """`with app.run():` without a guard works: in the container the module ends there, with one warning that shows the
    guarded form."""
    path = program("""
        import farcall

        app = farcall.App("unguarded")

        @app.function()
        def double(x):
            return 2 * x

        with farcall.enable_output(), app.run():
            print(double.remote(4), double.remote(5))
    """)
    done = execute(path)
    assert done.stdout == "8 10\n"
    assert done.stderr.count('if __name__ == "__main__":') == 1


# --- run arguments

ARGUMENTS = """
import enum
from datetime import datetime
from pathlib import Path
from typing import Literal, Optional

import farcall

app = farcall.App("arguments")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@app.local_entrypoint()
def main(
    text: str,
    whole_number: int,
    ratio: float = 0.5,
    dry_run: bool = False,
    verbose: bool = True,
    when: Optional[datetime] = None,
    mode: Literal["fast", "slow"] = "fast",
    path: Path = Path("."),
    colour: Colour = Colour.RED,
    numbers: list[int] = [],
    maybe: int | None = None,
):
    print(repr((text, whole_number, ratio, dry_run, verbose, when, mode, path, colour.name, numbers, maybe)))


@app.local_entrypoint()
def words(*args):
    print(args)


@app.function()
def cube(x: int = 2):
    return x**3


@app.cls()
class Greeter:
    @farcall.method()
    def greet(self, name: str):
        return f"hello {name}"


@app.function()
def letters(text: str):
    yield from text
"""


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (
            "main --text x --whole-number 3",
            "('x', 3, 0.5, False, True, None, 'fast', PosixPath('.'), 'RED', [], None)",
        ),
        (
            "main --text a=b --whole-number -3 --ratio 1e3 --dry-run --no-verbose --when 2024-02-29T12:00 --mode slow"
            " --path /etc --colour BLUE --numbers 1 2 --maybe 4",
            "('a=b', -3, 1000.0, True, False, datetime.datetime(2024, 2, 29, 12, 0), 'slow', PosixPath('/etc'), 'BLUE',"
            " [1, 2], 4)",
        ),
        ("words a --b -c 1", "('a', '--b', '-c', '1')"),
        ("cube", "8"),
        ("cube --x 3", "27"),
        ("Greeter.greet --name you", "hello you"),
        ("letters --text ab", "a\nb"),
    ],
    ids=["defaults", "all types", "*args", "function", "function with argument", "method", "generator"],
)
def test_run_arguments(program: Program, execute: Any, words: str, printed: str) -> None:
    """`run` arguments come from type hints: str, int, float, bool as --x/--no-x, datetime, Literal, Optional, Path,
    Enum, list[T], defaults; `_` becomes `-`; `*args` alone. Functions and methods run likewise."""
    name, *arguments = words.split()
    done = execute("-m", "farcall", "run", f"{program(ARGUMENTS)}::{name}", *arguments)
    assert done.stdout.strip() == printed


# --- logs


def test_logs_stream_live_and_are_kept(program: Program, start: Any, connected: "Installation") -> None:
    """Logs stream live with app, function and call attribution; they are kept and can be searched by function, call,
    time and text."""
    path = program("""
        import sys
        import farcall

        app = farcall.App("logged")

        @app.function()
        def say(word):
            print(f"saying {word}")
            if word == "bad":
                raise ValueError("bad word")

        if __name__ == "__main__":
            with farcall.enable_output(), app.run():
                call = say.spawn("one")
                call.get()
                print("id", app.app_id, call.object_id, flush=True)
                try:
                    say.remote("bad")
                except ValueError:
                    pass
                sys.stdin.readline()
    """)
    process = start(path)
    first, second = process.stdout.readline(), process.stdout.readline()
    assert "saying one\n" in (first, second), "live, while the program runs"
    _, app_id, call_id = next(line for line in (first, second) if line.startswith("id")).split()
    assert process.stdout.readline() == "saying bad\n"
    process.communicate("\n", timeout=30)

    def logs(*arguments: str) -> str:
        return connected.farcall("logs", *arguments).stdout

    assert re.findall("saying \\w+", logs(app_id)) == ["saying one", "saying bad"]
    assert re.findall("saying \\w+", logs("logged")) == ["saying one", "saying bad"]
    assert re.findall("saying \\w+", logs(call_id)) == ["saying one"]
    assert re.findall("saying \\w+", logs(app_id, "--grep", "b[a-z]d")) == ["saying bad"]
    assert re.findall("saying \\w+", logs(app_id, "--failed")) == ["saying bad"]
    assert re.findall("saying \\w+", logs(app_id, "--since", "1h")) == ["saying one", "saying bad"]
    with pytest.raises(pytest.fail.Exception, match=r"no app 'loged'; did you mean logged\?"):
        logs("loged")


def test_logs_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece of output comes with its function, call, input and container."""
    from farcall.sdk import events, output

    seen: list[events.LogLine] = []
    monkeypatch.setattr(
        output, "listener", lambda event: seen.append(event) if isinstance(event, events.LogLine) else None
    )
    app = farcall.App("attributed")
    speak = app.function(serialized=True, name="speak")(print)
    with app.run():
        call = speak.spawn_map(["a", "b"])
        list(call.iter())
    lines = sorted(line for line in seen if line.stream == "stdout")
    assert sorted((line.function, line.call_id, line.index, line.text) for line in lines) == [
        ("speak", call.object_id, 0, "a\n"),
        ("speak", call.object_id, 1, "b\n"),
    ]
    assert all(line.container_id.startswith("ta-") for line in lines)


# --- compatibility and local mode


def test_programs_of_the_reference_api_run(program: Program, execute: Any) -> None:
    """Under `farcall run` and `farcall python` a program that imports modal runs unmodified, here and in its
    containers."""
    text = """
        import modal

        app = modal.App("reference")

        @app.function(retries=modal.Retries(max_retries=1))
        def double(x):
            import modal as there
            assert not there.is_local()
            return 2 * x

        @app.local_entrypoint()
        def main():
            print(list(double.map([1, 2])))

        if __name__ == "__main__":
            with app.run():
                print(double.remote(4))
    """
    path = program(text)
    assert execute("-m", "farcall", "run", path).stdout == "[2, 4]\n"
    assert execute("-m", "farcall", "python", path).stdout == "8\n"


def test_local_mode_runs_everything_in_this_process(program: Program, execute: Any) -> None:
    """`farcall run --local` runs every function in this process, by value all the same."""
    path = program("""
        import os
        import farcall

        app = farcall.App("local")

        @app.function()
        def where(value):
            value.append(1)
            return os.getpid(), value

        @app.local_entrypoint()
        def main():
            mine = []
            pid, value = where.remote(mine)
            print(pid == os.getpid(), mine, value, list(where.map([[2]]))[0][1])
    """)
    done = execute("-m", "farcall", "run", "--local", path)
    assert done.stdout == "True [] [1] [2, 1]\n"


def test_status_shows_what_runs(program: Program, start: Any, connected: "Installation") -> None:
    """`farcall server status` lists running apps with their state, containers and inputs."""
    process = start(program(BLOCKING))
    app_id = process.stdout.readline().strip()
    assert process.stdout.readline() == "it runs\n"
    status = json.loads(connected.farcall("server", "status", "--json").stdout)
    [report] = [one for one in status["apps"] if one["app_id"] == app_id]
    assert (report["state"], report["name"], report["containers"], report["running"]) == ("ephemeral", "blocking", 1, 1)
    process.kill()


def test_stopping_an_app_cancels_what_waits() -> None:
    """app.stop() ends the app from another thread; whoever waits for its calls is told."""
    import threading

    app = farcall.App("stopped")
    napper = app.function(serialized=True, name="nap")(time.sleep)
    failures: list[BaseException] = []

    def call() -> None:
        try:
            napper.remote(60)
        except errors.FarcallError as error:
            failures.append(error)

    with app.run():
        napper.remote(0)
        thread = threading.Thread(target=call)
        thread.start()
        while not any(report.running for report in clients.current().status().apps if report.app_id == app.app_id):
            os.sched_yield()
        app.stop()
        thread.join(20)
    assert [type(error) for error in failures] == [errors.InputCancelledError]
    assert "stopped" in str(failures[0])


def test_a_detached_app_is_not_this_process_s_any_more(connected: "Installation") -> None:
    """A program that has left it, and connects again, does not bring it along."""
    detached = farcall.App("left-alone")

    @detached.function(serialized=True)
    def hold() -> str:
        import time

        time.sleep(2)
        return "held"

    with detached.run(detach=True):
        call = hold.spawn()
    clients.disconnect()  # refused while this process runs an app
    assert call.get(timeout=30) == "held"
    assert "is not recorded" not in connected.farcall("server", "logs").stdout
