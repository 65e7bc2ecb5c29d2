"""Builds as the author of a program sees them: what is shown, what fails, what is interrupted, what is shared.

Debian itself is made once for all tests of the session, with those of `test_images`.
"""

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Installation

BUILD_SECONDS = 500  # the first build makes Debian
pytestmark = pytest.mark.timeout(BUILD_SECONDS)

SLIM = "farcall.Image.debian_slim('3.11')"


Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a program, in which SLIM stands for a Debian."""

    def write(text: str) -> Path:
        program = tmp_path / "program.py"
        program.write_text(f"import farcall\nSLIM = {SLIM}\n{textwrap.dedent(text)}")
        return program

    return write


def unique(tmp_path: Path) -> str:
    """A word that makes a step one that was never built."""
    return f"{tmp_path.name}-{os.getpid()}"


def test_what_a_build_shows(connected: Installation, write: Write, tmp_path: Path) -> None:
    program = write(
        f"""
        image = SLIM.run_commands("echo printed {unique(tmp_path)}", "echo >&2 also this")
        app = farcall.App(image=image)
        @app.function()
        def f():
            return "result"
        @app.local_entrypoint()
        def main():
            print(f.remote())
            print(image.object_id[:3])
        """
    )
    first = connected.farcall("run", program, timeout=BUILD_SECONDS)
    assert first.stdout == "result\nim-\n"
    lines = re.sub(r"in (\d+ min )?\d+(\.\d)? s$", "in N s", first.stderr, flags=re.MULTILINE).splitlines()
    begin = lines.index(f"image: step 2 of 3: RUN echo printed {unique(tmp_path)}")
    assert lines[begin + 1 : begin + 7] == [
        f"  printed {unique(tmp_path)}",
        "image: step 2 of 3 done in N s",
        "image: step 3 of 3: RUN echo >&2 also this",
        "  also this",
        "image: step 3 of 3 done in N s",
        "image: built in N s",
    ]
    second = connected.farcall("run", program)
    assert second.stdout == "result\nim-\n"
    assert "image:" not in second.stderr


def test_a_step_that_fails(connected: Installation, write: Write) -> None:
    program = write(
        """
        app = farcall.App(image=SLIM.run_commands("echo one; echo two; exit 3"))
        @app.function()
        def f(): ...
        @app.local_entrypoint()
        def main():
            f.remote()
        """
    )
    for flag in ("-q", "--no-compat"):
        failed = connected.farcall("run", flag, program, check=False, timeout=BUILD_SECONDS)
        assert failed.returncode == 1, failed.stderr
        message = failed.stderr[failed.stderr.index("farcall: ") :] if flag == "-q" else failed.stderr
        for part in ("echo one; echo two; exit 3", "status 3", "one", "two"):
            assert part in message
        assert "Traceback" not in failed.stderr


def test_the_error_of_a_step_is_typed(connected: Installation, write: Write) -> None:
    program = write(
        """
        import asyncio
        app = farcall.App(image=SLIM.run_commands("exit 4"))
        @app.function()
        def f(): ...
        async def awaited():
            async with app.run():
                pass
        def main():
            for run in (lambda: app.run().__enter__(), lambda: asyncio.run(awaited()), lambda: app.image.build()):
                try:
                    run()
                except farcall.errors.ImageBuildError as error:
                    print(error.step, "|", error.command, "|", app.is_running)
        if __name__ == "__main__":
            main()
        """
    )
    done = connected.farcall("python", program, timeout=BUILD_SECONDS)
    assert done.stdout.splitlines() == ["RUN exit 4 | exit 4 | False"] * 3


def test_what_a_failing_step_printed_is_shown_once(connected: Installation, write: Write, tmp_path: Path) -> None:
    """As it comes, where that is shown; else in the error, which a program that catches it has whole in any case."""
    program = write(
        f"""
        import sys
        app = farcall.App(image=SLIM.run_commands("echo $((40 + 2))-{unique(tmp_path)}; exit 4"))
        @app.function()
        def f(): ...
        @app.local_entrypoint()
        def main(): ...
        if __name__ == "__main__":
            try:
                app.image.build()
            except farcall.errors.ImageBuildError as error:
                print(error, error.last_lines)
        """
    )
    for words, where in (("run",), "what it printed is above"), (("run", "--quiet"), "its last lines:"):
        done = connected.farcall(*words, program, timeout=BUILD_SECONDS, check=False)
        assert done.returncode == 1
        assert done.stderr.count(f"42-{unique(tmp_path)}") == 1, done.stderr
        assert "ended with status 4" in done.stderr and where in done.stderr
    caught = connected.farcall("python", program, timeout=BUILD_SECONDS).stdout
    assert caught.count(f"; its last lines:\n  42-{unique(tmp_path)}") == 2


def test_images_of_one_app_share_their_steps(connected: Installation, write: Write, tmp_path: Path) -> None:
    program = write(
        f"""
        import asyncio
        base = SLIM.run_commands("echo shared {unique(tmp_path)}; cat /proc/sys/kernel/random/uuid > /shared")
        left = base.run_commands("echo left > /own")
        right = base.run_commands("echo right > /own")
        app = farcall.App(image=right)
        @app.function(image=left)
        def f():
            return open("/shared").read(), open("/own").read()
        @app.function()
        def g():
            return open("/shared").read(), open("/own").read()
        async def main():
            async with app.run():
                (shared, one), (same, other) = await f.remote.aio(), await g.remote.aio()
            print(shared == same, one.strip(), other.strip())
            assert await left.build.aio() is left
            print(left.object_id != right.object_id, SLIM.build().object_id != base.build().object_id)
        if __name__ == "__main__":
            with farcall.enable_output():
                asyncio.run(main())
        """
    )
    done = connected.farcall("python", program, timeout=BUILD_SECONDS)
    assert done.stdout == "True left right\nTrue True\n"
    assert done.stderr.count(f"shared {unique(tmp_path)}\n") <= 3  # said to both, once in each title


def test_an_interrupted_build_goes_on_where_it_was(connected: Installation, write: Write, tmp_path: Path) -> None:
    text = """
        app = farcall.App(image=SLIM.run_commands("echo first UNIQUE > /first", "echo waiting; sleep SECONDS"))
        @app.function()
        def f():
            print(open("/first").read())
        @app.local_entrypoint()
        def main():
            f.remote()
        """.replace("UNIQUE", unique(tmp_path))
    program = write(text.replace("SECONDS", "300"))
    process, shown = connected.start("run", program, until="  waiting")
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), f"{shown}\n{rest}"
    assert "interrupted in" in rest
    assert connected.farcall("server", "status").returncode == 0
    again = connected.farcall("run", write(text.replace("SECONDS", "0")), timeout=60)
    assert again.stdout == f"first {unique(tmp_path)}\n\n"
    assert "step 2 of 3" not in again.stderr


def test_secrets_of_a_step(connected: Installation, write: Write, tmp_path: Path) -> None:
    connected.farcall("secret", "create", "for-images", "STORED=hidden-too")
    text = """
        secrets = [farcall.Secret.from_dict({"GIVEN": "VALUE"}), farcall.Secret.from_name("for-images")]
        image = SLIM.run_commands("echo $GIVEN$STORED UNIQUE | md5sum > /sum", secrets=secrets)
        app = farcall.App(image=image)
        @app.function()
        def f():
            import os
            return open("/sum").read(), os.environ.get("GIVEN"), os.environ.get("STORED")
        @app.local_entrypoint()
        def main():
            print(*f.remote())
        """.replace("UNIQUE", unique(tmp_path))
    one = connected.farcall("run", write(text.replace("VALUE", "hidden-one")), timeout=BUILD_SECONDS)
    from hashlib import md5

    expected = md5(f"hidden-onehidden-too {unique(tmp_path)}\n".encode()).hexdigest()
    assert one.stdout == f"{expected}  -\n None None\n"
    other = connected.farcall("run", write(text.replace("VALUE", "hidden-other")), timeout=BUILD_SECONDS)
    assert other.stdout == one.stdout
    assert "hidden" not in one.stderr + other.stderr
    connected.farcall("secret", "delete", "for-images", "--yes")


def test_a_module_that_the_image_lacks(connected: Installation, write: Write) -> None:
    program = write(
        """
        app = farcall.App(image=SLIM)
        @app.function()
        def f():
            import msgspec
        @app.local_entrypoint()
        def main():
            f.remote()
        """
    )
    failed = connected.farcall("run", program, check=False, timeout=BUILD_SECONDS)
    assert failed.returncode == 1
    assert '"msgspec" ' in failed.stderr.replace("'", '"')
    assert 'add .pip_install("msgspec") to it' in failed.stderr


def test_an_image_without_python(connected: Installation, write: Write) -> None:
    program = write(
        """
        app = farcall.App(image=farcall.Image.from_scratch().env({"A": "1"}))
        @app.function()
        def f(): ...
        @app.local_entrypoint()
        def main():
            f.remote()
        """
    )
    failed = connected.farcall("run", program, check=False, timeout=BUILD_SECONDS)
    assert failed.returncode == 1
    assert "has no Python: add one with add_python=" in failed.stderr


def test_what_is_installed_here_is_installed_there(connected: Installation, write: Write, tmp_path: Path) -> None:
    """An environment with a package of PyPI and one in editable mode."""
    environment, project = tmp_path / "environment", tmp_path / "project"
    (project / "src" / "edited_here").mkdir(parents=True)
    (project / "src/edited_here/__init__.py").write_text("WORD = 'edited'\n")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "edited-here"\nversion = "1"\n'
        '[tool.hatch.build.targets.wheel]\npackages = ["src/edited_here"]\n'
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python]
    subprocess.run([*install, "six==1.16.0", "-e", project], check=True)
    program = write(
        """
        app = farcall.App(image=farcall.Image.from_installed())
        @app.function()
        def f():
            import sys, six, edited_here
            return six.__version__, six.__file__.startswith("/usr"), edited_here.WORD, sys.version_info[:2]
        @app.local_entrypoint()
        def main():
            import sys
            *found, version = f.remote()
            print(*found, version == sys.version_info[:2])
        """
    )
    done = connected.farcall("run", "--python", python, program, timeout=BUILD_SECONDS)
    assert done.stdout == "1.16.0 True edited True\n"
    (project / "src/edited_here/__init__.py").write_text("WORD = 'edited again'\n")
    again = connected.farcall("run", "--python", python, program)
    assert again.stdout == "1.16.0 True edited again True\n"
    assert "image:" not in again.stderr
    subprocess.run([*install, project], check=True)
    failed = connected.farcall("run", "--python", python, program, check=False)
    assert failed.returncode == 1
    assert f"cannot be installed in an image: edited-here (from {project})" in failed.stderr
