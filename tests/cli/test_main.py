"""The command line as a user meets it, as far as it needs no container."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farcall.cli.logs import seconds_since
from farcall.cli.main import COMMANDS
from farcall.cli.usage import UsageError
from farcall.version import __version__

Cli = Callable[..., subprocess.CompletedProcess[str]]

HELLO = """
import sys
import farcall

app = farcall.App("hello")


@app.function()
def square(x: int) -> int:
    "The square of x."
    print("working")
    return x * x


@app.function()
def fail() -> None:
    raise ValueError("as it should")


@app.function()
def countdown(n: int):
    yield from range(n, 0, -1)


@app.cls()
class Greeter:
    @farcall.method()
    def greet(self, name: str = "you") -> str:
        return f"hello {name}"


@app.local_entrypoint()
def main(count: int = 3, loud: bool = False):
    print(sum(square.map(range(count))), loud, file=sys.stdout)


@app.local_entrypoint()
async def other(*words: str):
    print(words)
"""


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    file = tmp_path / "hello.py"
    file.write_text(HELLO)
    return file


def write(folder: Path, name: str, content: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(content))
    return file


# --- farcall itself


def test_help_names_all_commands(cli: Cli) -> None:
    for words in ([], ["--help"]):
        done = cli(*words)
        assert done.returncode == 0
        assert all(command.name in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_each_command_has_help(cli: Cli, command: str) -> None:
    done = cli(command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: farcall {command}")


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout == f"farcall {__version__}\n"


def test_a_mistyped_command_names_the_nearest(cli: Cli) -> None:
    done = cli("rnu", "x.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no command 'rnu'; did you mean 'run'?" in done.stderr


@pytest.mark.parametrize("words", [["--nope"], ["run", "--quite", "x.py"], ["server"], ["server", "strat"], ["logs"]])
def test_wrong_usage_ends_with_2(cli: Cli, words: list[str]) -> None:
    done = cli(*words)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""


def test_python_dash_m_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "farcall", "--version"], capture_output=True, text=True)
    assert done.stdout == f"farcall {__version__}\n"


def test_help_imports_little() -> None:
    program = (
        "import sys; from farcall.cli.main import main; sys.stdout = open('/dev/null', 'w'); main(['--help']); "
        "print(sorted({'asyncio', 'msgspec', 'subprocess', 'inspect', 'dataclasses', 'json', 'socket'} "
        "& set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == "[]\n"


# --- run, in this process


def test_the_first_line_says_which_python_and_what_modal_is(cli: Cli, hello: Path) -> None:
    done = cli("run", "--local", hello, "--help")
    first = done.stderr.splitlines()[0]
    assert first.startswith(f"python: {sys.executable} (")
    assert "`import modal` gives farcall" in first
    assert "modal" not in cli("run", "--local", "--no-compat", hello, "--help").stderr


def test_one_of_several_entrypoints_must_be_named(cli: Cli, hello: Path) -> None:
    done = cli("run", "--local", hello)
    assert done.returncode == 2
    assert "several entrypoints; name one" in done.stderr
    assert "::main [--count INT] [--loud | --no-loud]" in done.stderr
    assert "::other" in done.stderr


def test_an_entrypoint_with_arguments(cli: Cli, hello: Path) -> None:
    done = cli("run", "--local", f"{hello}::main", "--count", "4", "--loud")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "working\n" * 4 + "14 True\n"
    assert re.search(r"^done in \d", done.stderr.splitlines()[-1])


def test_an_asynchronous_entrypoint_with_words(cli: Cli, hello: Path) -> None:
    done = cli("run", "--local", "-q", f"{hello}::other", "a", "--b")
    assert (done.returncode, done.stdout, done.stderr) == (0, "('a', '--b')\n", "")


def test_a_function_a_method_and_a_generator(cli: Cli, hello: Path) -> None:
    assert cli("run", "--local", f"{hello}::square", "--x", "5").stdout == "working\n25\n"
    assert cli("run", "--local", f"{hello}::Greeter.greet", "--name", "Ada").stdout == "hello Ada\n"
    assert cli("run", "--local", f"{hello}::countdown", "--n", "2").stdout == "2\n1\n"


def test_help_of_a_program_lists_what_it_offers(cli: Cli, hello: Path) -> None:
    out = cli("run", "--local", hello, "--help").stdout
    for line in ("::main", "::other", "::square --x INT", "The square of x.", "::Greeter.greet [--name STR]"):
        assert line in out
    out = cli("run", "--local", f"{hello}::square", "--help").stdout
    assert out.startswith(f"usage: farcall run {hello}::square")
    assert "The square of x." in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hello.py::squar"], "has no 'squar'; did you mean 'square'?"),
        (["hello.py::square"], "required: --x"),
        (["hello.py::square", "--x", "one"], "'one' is not of type int"),
        (["helo.py"], "no file helo.py; did you mean 'hello.py'?"),
        (["hello"], "did you mean 'hello.py', or -m hello?"),
        (["."], "is a folder"),
        (["-m", "nothere.module"], "there is no module nothere.module"),
        ([], "farcall init"),
    ],
)
def test_what_cannot_be_run_ends_with_2(cli: Cli, hello: Path, words: list[str], said: str) -> None:
    done = cli("run", "--local", *words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stdout == ""


def test_an_option_that_a_command_within_a_command_has_not(cli: Cli) -> None:
    wrong = cli("worker", "join", "--token", "x")
    assert wrong.returncode == 2
    assert "farcall worker join: not understood: --token x; did you mean '--token-file'?" in wrong.stderr


def test_an_error_in_the_program_shows_its_own_lines(cli: Cli, hello: Path) -> None:
    done = cli("run", "--local", f"{hello}::fail")
    assert done.returncode == 1
    assert f'File "{hello}", line 17, in fail' in done.stderr
    assert "ValueError: as it should" in done.stderr
    assert "/farcall/" not in done.stderr
    full = cli("run", "--local", f"{hello}::fail", FARCALL_TRACEBACK="full")
    assert "/farcall/" in full.stderr


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("x = (1,\n", "SyntaxError: '(' was never closed"),
        ("import not_there_at_all\n", "has no module 'not_there_at_all'. Install it there"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("x = 1\n", "has no app: make one with"),
        ("import farcall\napp = farcall.App()\n", "has nothing to run"),
        ("import farcall\nfarcall.Ap()\n", "AttributeError"),
    ],
)
def test_a_program_that_cannot_be_loaded_says_why(cli: Cli, tmp_path: Path, program: str, said: str) -> None:
    write(tmp_path, "program.py", program)
    done = cli("run", "--local", "program.py")
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "importlib" not in done.stderr
    assert "farcall/cli/" not in done.stderr


@pytest.mark.parametrize(("ending", "code"), [("sys.exit(7)", 7), ("sys.exit()", 0), ("sys.exit('bad')", 1)])
def test_sys_exit_in_the_entrypoint_is_the_exit_code(cli: Cli, tmp_path: Path, ending: str, code: int) -> None:
    write(
        tmp_path,
        "program.py",
        f"""
        import sys, farcall
        app = farcall.App()
        @app.local_entrypoint()
        def main():
            {ending}
        """,
    )
    assert cli("run", "--local", "program.py").returncode == code


def test_a_module_of_a_package(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, "package/__init__.py", "")
    write(tmp_path, "package/helper.py", "VALUE = 42\n")
    write(
        tmp_path,
        "package/program.py",
        """
        import farcall
        from package.helper import VALUE
        app = farcall.App()
        @app.function()
        def value(more: int = 0) -> int:
            return VALUE + more
        """,
    )
    assert cli("run", "--local", "-m", "package.program").stdout == "42\n"
    assert cli("run", "--local", "-m", "package.program", "--more", "1").stdout == "43\n"
    assert cli("run", "-q", "--local", "-m", "package.program::value", "--more=2").stdout == "44\n"
    assert cli("run", "-m").returncode == 2


def test_a_program_for_the_reference_api_runs_unmodified(cli: Cli, tmp_path: Path) -> None:
    write(
        tmp_path,
        "program.py",
        """
        import modal
        app = modal.App("x")
        @app.function()
        def f(x: int = 2):
            return x + 1
        """,
    )
    done = cli("run", "--local", "program.py")
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    without = cli("run", "--local", "--no-compat", "program.py")
    assert without.returncode == 1
    assert "has no module 'modal'" in without.stderr


def test_old_names_are_one_line_each(cli: Cli, tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "program.py",
        """
        import modal
        stub = modal.Stub("x")
        @stub.function(concurrency_limit=2)
        def f():
            return 1
        """,
    )
    done = cli("run", "--local", file)
    assert done.stdout == "1\n", done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith(f"{file}:")]
    assert len(told) == 2, done.stderr
    assert len(done.stderr.splitlines()) == 4


def test_a_folder_that_no_container_gets_is_named(installation: Any, tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "program.py",
        """
        import farcall
        app = farcall.App()
        @app.local_entrypoint()
        def main(): ...
        """,
    )
    path = f"{installation.environment.get('PYTHONPATH', '')}:{installation.environment['HOME']}"
    done = installation.farcall("run", file, PYTHONPATH=path)
    assert f"containers are not given {installation.environment['HOME']} (an entry of its sys.path)" in done.stderr


def test_the_script_sees_its_own_argv_and_folder(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, "sub/neighbour.py", "NAME = 'neighbour'\n")
    write(
        tmp_path,
        "sub/program.py",
        """
        import sys, farcall, neighbour
        app = farcall.App()
        @app.local_entrypoint()
        def main(*words):
            print(sys.argv, neighbour.NAME)
        """,
    )
    assert cli("run", "--local", "sub/program.py", "a").stdout == "['sub/program.py', 'a'] neighbour\n"


# --- another interpreter


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    folder = tmp_path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder


def test_dot_venv_is_used_and_need_not_have_farcall(cli: Cli, venv: Path, tmp_path: Path) -> None:
    site = venv / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    write(site, "only_there.py", "VALUE = 1\n")
    write(
        tmp_path,
        "sub/program.py",
        """
        import sys, importlib.util, farcall, only_there
        app = farcall.App()
        @app.function()
        def f():
            return sys.prefix, [n for n in ("msgspec", "cloudpickle", "uvloop") if importlib.util.find_spec(n)]
        """,
    )
    done = cli("run", "--local", "sub/program.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"('{venv}', [])\n"
    assert done.stderr.startswith(f"python: {venv}/bin/python (.venv)")


def test_a_broken_venv_is_named(cli: Cli, venv: Path, hello: Path) -> None:
    python = venv / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    done = cli("run", "--local", hello)
    assert done.returncode == 2
    assert "points to /nowhere/python3, which does not exist" in done.stderr


# --- python


def test_python_runs_a_plain_script_as_main(cli: Cli, tmp_path: Path) -> None:
    write(
        tmp_path,
        "plain.py",
        """
        import pickle, sys, modal, farcall
        class Thing: pass
        if __name__ == "__main__":
            assert modal.App is farcall.App
            assert type(pickle.loads(pickle.dumps(Thing()))) is Thing
            print(sys.argv, __file__ == sys.argv[0])
            sys.exit(4)
        """,
    )
    done = cli("python", tmp_path / "plain.py", "--x", "-q")
    assert done.returncode == 4
    assert done.stdout == f"['{tmp_path / 'plain.py'}', '--x', '-q'] True\n"
    assert done.stderr.startswith("python: ")
    assert cli("python").returncode == 2
    assert cli("python", "nope.py").returncode == 2


def test_pythons_errors_show_the_scripts_lines_only(cli: Cli, tmp_path: Path) -> None:
    file = write(tmp_path, "plain.py", "def f():\n    raise KeyError('x')\nf()\n")
    done = cli("python", "-q", file)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines(True) if line.strip(" ~^\n")]
    assert "".join(lines) == (
        f'Traceback (most recent call last):\n  File "{file}", line 3, in <module>\n    f()\n'
        f"  File \"{file}\", line 2, in f\n    raise KeyError('x')\nKeyError: 'x'\n"
    )


# --- interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["run", "python"])
def test_each_way_to_interrupt_ends_with_130(cli: Cli, tmp_path: Path, number: signal.Signals, command: str) -> None:
    write(
        tmp_path,
        "program.py",
        """
        import os, time, farcall
        app = farcall.App()
        def wait():
            try:
                os.kill(os.getpid(), int(os.environ["SIGNAL"]))
                time.sleep(30)
            finally:
                print("cleaned up", flush=True)
        if __name__ == "__main__":
            wait()
        @app.local_entrypoint()
        def main():
            wait()
        """,
    )
    words = ["run", "--local"] if command == "run" else ["python"]
    done = cli(*words, "program.py", SIGNAL=str(int(number)))
    assert done.returncode == 130, done.stderr
    assert done.stdout == "cleaned up\n"
    assert "Traceback" not in done.stderr


def test_nohup_survives_a_closed_terminal(tmp_path: Path, cli: Cli) -> None:
    write(
        tmp_path,
        "program.py",
        """
        import os, signal, farcall
        app = farcall.App()
        @app.local_entrypoint()
        def main():
            os.kill(os.getpid(), signal.SIGHUP)
            print("still here")
        """,
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        done = cli("run", "--local", "program.py")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (done.returncode, done.stdout) == (0, "still here\n")


def test_a_reader_that_goes_away_is_no_drama(tmp_path: Path, cli: Cli) -> None:
    write(
        tmp_path,
        "program.py",
        """
        import farcall
        app = farcall.App()
        @app.local_entrypoint()
        def main():
            for number in range(100000):
                print(number)
        """,
    )
    command = f"{sys.executable} -m farcall run -q --local program.py | head -n 1"
    environment = {**os.environ, "FARCALL_STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "0\n"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


# --- init


@pytest.mark.parametrize("template", ["map", "class", "train"])
def test_init_writes_programs_that_run(cli: Cli, tmp_path: Path, template: str) -> None:
    done = cli("init", "--template", template)
    assert done.returncode == 0
    assert "farcall run main.py" in done.stderr
    ran = cli("run", "--local", "main.py")
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) >= 3


def test_init_overwrites_nothing(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, "main.py", "mine\n")
    done = cli("init")
    assert done.returncode == 2
    assert "main.py exists" in done.stderr
    assert (tmp_path / "main.py").read_text() == "mine\n"
    assert cli("init", "other.py").returncode == 0
    assert cli("init", "no/such/folder.py").returncode == 2


def test_init_takes_names_of_python_files(cli: Cli, tmp_path: Path) -> None:
    assert cli("init", "job").returncode == 0
    assert (tmp_path / "job.py").exists()
    assert cli("init", "job.txt").returncode == 2
    assert cli("init", ".").returncode == 2


def test_wrong_settings_are_wrong_usage(cli: Cli, tmp_path: Path, hello: Path) -> None:
    for flags in (["--python", "/nowhere"], ["--python", "3.99"], ["--profile", "nope"]):
        done = cli("run", *flags, hello)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
    write(tmp_path, "pyproject.toml", "[tool.farcall]\ncompat = 3\n")
    assert cli("run", hello).returncode == 2
    write(tmp_path, "pyproject.toml", "[tool.farcall\n")
    assert cli("run", hello).returncode == 2


def test_a_state_directory_that_cannot_be_made_is_the_platforms(cli: Cli, hello: Path) -> None:
    done = cli("run", f"{hello}::main", FARCALL_STATE_DIR="/proc/nowhere/state")
    assert done.returncode == 3
    assert "farcall: cannot make its directory /proc/nowhere/state" in done.stderr


def test_relative_imports_of_a_file_lead_to_dash_m(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pkg" / "sub").mkdir(parents=True)
    write(tmp_path, "pkg/sub/job.py", "from . import other\n")
    done = cli("run", "pkg/sub/job.py")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(" farcall run -m pkg.sub.job")


# --- config, completion, logs


def test_config_show_has_values_and_origins(cli: Cli, tmp_path: Path) -> None:
    import json

    write(tmp_path, "pyproject.toml", "[tool.farcall]\nquiet = true\nruntim = 'native'\n")
    done = cli("config", "show", FARCALL_RUNTIME="process")
    assert done.returncode == 0
    assert re.search(rf"^quiet +true +{tmp_path}/pyproject\.toml$", done.stdout, re.MULTILINE)
    assert re.search(r"^runtime +process +environment FARCALL_RUNTIME$", done.stdout, re.MULTILINE)
    assert re.search(r"^compat +true +default$", done.stdout, re.MULTILINE)
    assert "unknown setting 'runtim'" in done.stderr
    found = json.loads(cli("config", "show", "--json").stdout)
    assert found["settings"]["quiet"] == {"value": True, "origin": str(tmp_path / "pyproject.toml")}
    wrong = cli("config", "show", FARCALL_RUNTIME="docker")
    assert wrong.returncode == 2
    assert re.search(r"^runtime +WRONG +runtime must be native or process, not 'docker'", wrong.stdout, re.MULTILINE)
    assert re.search(r"^compat +true +default$", wrong.stdout, re.MULTILINE)


def complete(tmp_path: Path, script: str, *words: str) -> list[str]:
    """What bash offers after `farcall WORDS`, the last of which is being written."""
    (tmp_path / "completion.bash").write_text(script)
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"source ./completion.bash; COMP_WORDS=(farcall {quoted}); COMP_CWORD={len(words)}; "
        '_farcall; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completion(cli: Cli, tmp_path: Path, hello: Path) -> None:
    script = cli("completion", "bash").stdout
    assert complete(tmp_path, script, "ru") == ["run"]
    assert set(complete(tmp_path, script, "")) >= {command.name for command in COMMANDS}
    assert complete(tmp_path, script, "server", "sta") == ["start", "status"]
    assert complete(tmp_path, script, "server", "stop", "--f") == ["--force"]
    assert complete(tmp_path, script, "run", "--de") == ["--detach"]
    assert complete(tmp_path, script, "run", "hel") == ["hello.py"]
    assert complete(tmp_path, script, "init", "--template", "") != []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_their_completion(cli: Cli, tmp_path: Path, shell: str) -> None:
    script = cli("completion", shell).stdout
    assert "--detach" in script or "-l detach" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    file = write(tmp_path, "completion", script)
    done = subprocess.run([shell, "-n", file], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completion(cli: Cli, tmp_path: Path, hello: Path) -> None:
    write(tmp_path, "completion.fish", cli("completion", "fish").stdout)

    def offered(line: str) -> list[str]:
        program = f"source completion.fish; complete -C '{line}'"
        done = subprocess.run(["fish", "--no-config", "-c", program], cwd=tmp_path, capture_output=True, text=True)
        return [entry.partition("\t")[0] for entry in done.stdout.splitlines()]

    assert offered("farcall ru") == ["run"]
    assert offered("farcall server sta") == ["start", "status"]
    assert offered("farcall server stop --fo") == ["--force"]
    assert "hello.py" in offered("farcall run hel")


def test_points_in_time() -> None:
    assert seconds_since("90s", 1000.0) == 910.0
    assert seconds_since("2h", 10000.0) == 2800.0
    assert seconds_since("2026-01-02T03:04:05+00:00", 0.0) == 1767323045.0
    with pytest.raises(UsageError, match="neither like"):
        seconds_since("yesterday", time.time())
