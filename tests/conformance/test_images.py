"""Images, as a program's author builds and uses them: real builds on a real Debian, through the command line.

All tests share the content store of the session: Debian itself is made once.
"""

import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from farcall.builder import pythons

Program = Callable[[str], Path]


class Farcall(Protocol):
    root: Path
    environment: dict[str, str]

    def farcall(self, *arguments: str | Path, check: bool = True, timeout: float = 60, **environment: str): ...  # type: ignore[no-untyped-def]


BUILD_SECONDS = 300  # the first build makes Debian
pytestmark = pytest.mark.timeout(BUILD_SECONDS)


@pytest.fixture
def run(connected: Farcall, tmp_path: Path) -> Callable[..., str]:
    """Runs a program with one function `f` of the image that an expression makes; what it prints."""

    def run(image: str, body: str, *, more: str = "", check: bool = True) -> str:
        program = tmp_path / "program.py"
        program.write_text(
            "import farcall\nfrom pathlib import Path\n"
            f"here = Path({str(tmp_path)!r})\n{textwrap.dedent(more)}\nimage = {image}\n"
            "app = farcall.App('images', image=image)\n"
            f"@app.function()\ndef f():\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
            "@app.local_entrypoint()\ndef main():\n    f.remote()\n"
        )
        completed = connected.farcall("run", program, check=check, timeout=BUILD_SECONDS)
        return completed.stdout if check else completed.stdout + completed.stderr

    return run


SLIM = "farcall.Image.debian_slim(python_version='3.11')"


def test_debian_slim_is_debian_with_the_python_asked_for(run: Callable[..., str]) -> None:
    output = run(
        SLIM,
        """
        import os, sys
        print(sys.version_info[:2], open("/etc/os-release").read().split("PRETTY_NAME=")[1].splitlines()[0])
        print(sorted(os.listdir("/home")), os.path.exists("/work"), os.getcwd(), os.environ["HOME"])
        """,
    )
    assert output.splitlines()[0] == '(3, 11) "Debian GNU/Linux 12 (bookworm)"'
    assert output.splitlines()[1] == "[] False /root /root"


def test_debian_and_python_packages(run: Callable[..., str]) -> None:
    output = run(
        f"{SLIM}.apt_install('hello').pip_install('six==1.17.0')",
        """
        import subprocess, six
        print(subprocess.run(["hello"], capture_output=True, text=True).stdout.strip(), six.__version__, six.__file__)
        """,
    )
    assert output == "Hello, world! 1.17.0 /usr/local/lib/python3.11/dist-packages/six.py\n"


def test_another_python(installation: Farcall, tmp_path: Path) -> None:
    minors = ("3.12", "3.13", "3.14")
    found = next((python for minor in minors if (python := pythons.find(minor, os.environ)) is not None), None)
    if found is None:
        pytest.skip("needs an interpreter with a prefix of its own, newer than 3.11, on this machine (uv, pyenv)")
    installation.environment["PATH"] += f":{found.prefix}/bin"  # which its server looks through
    program = tmp_path / "program.py"
    program.write_text(
        f"import farcall\nimage = farcall.Image.debian_slim(python_version={found.minor!r}).uv_pip_install('six')\n"
        "app = farcall.App('images', image=image)\n@app.function()\ndef f():\n    import ssl, sqlite3, sys, six\n"
        "    print('%d.%d' % sys.version_info[:2], six.__name__)\n"
        "@app.local_entrypoint()\ndef main():\n    f.remote()\n"
    )
    assert installation.farcall("run", program, timeout=BUILD_SECONDS).stdout == f"{found.minor} six\n"


def test_a_python_that_is_not_to_be_had(run: Callable[..., str]) -> None:
    output = run("farcall.Image.debian_slim(python_version='3.14.99')", "pass", check=False)
    assert "Python 3.14.99 is not to be had" in output and "Available: 3.11" in output
    assert "Traceback" not in output


def test_packages_from_files(run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("six==1.17.0  # pinned\n")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\nversion = "1"\ndependencies = ["iniconfig==2.0.0"]\n'
        '[project.optional-dependencies]\nmore = ["idna==3.10"]\n'
    )
    output = run(
        f"{SLIM}.pip_install_from_requirements(str(here / 'requirements.txt'))"
        ".pip_install_from_pyproject(str(here / 'pyproject.toml'), ['more'])",
        """
        from importlib.metadata import version
        print(version("six"), version("iniconfig"), version("idna"))
        """,
    )
    assert output == "1.17.0 2.0.0 3.10\n"


def test_a_uv_project(run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/pyproject.toml").write_text(
        '[project]\nname = "x"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["iniconfig==2.0.0"]\n'
    )
    output = run(
        f"{SLIM}.uv_sync(str(here / 'project'), frozen=False)",
        """
        import sys
        from importlib.metadata import version
        print(version("iniconfig"), sys.prefix)
        """,
    )
    assert output == "2.0.0 /.uv/.venv\n"


def test_commands_environment_folder_and_shell(run: Callable[..., str]) -> None:
    output = run(
        f"{SLIM}.env({{'COLOR': 'dark blue'}}).run_commands('mkdir -p /data', 'echo \"$COLOR\" > /data/color')"
        ".workdir('/data').shell(['/bin/bash', '-c']).run_commands('echo ${BASH_VERSION%%.*} > shell')",
        """
        import os
        print(os.getcwd(), os.environ["COLOR"], open("color").read().strip(), open("shell").read().strip())
        """,
    )
    assert output == "/data dark blue dark blue 5\n"


def test_an_entrypoint_starts_the_runner(run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "start").write_text('#!/bin/sh\nexport STARTED_BY=entrypoint\nexec "$@"\n')
    (tmp_path / "start").chmod(0o755)
    output = run(
        f"{SLIM}.add_local_file(here / 'start', '/start', copy=True).entrypoint(['/start'])",
        """
        import os
        print(os.environ.get("STARTED_BY"))
        """,
    )
    assert output == "entrypoint\n"


def test_a_function_as_a_step(run: Callable[..., str]) -> None:
    output = run(
        f"{SLIM}.pip_install('six==1.17.0').run_function(prepare, args=(3,), kwargs={{'word': 'model'}})",
        "print(open('/model').read())",
        more="""
        def prepare(count, word):
            import six
            print("preparing", six.__version__)
            open("/model", "w").write(" ".join([word] * count))
        """,
    )
    assert output == "model model model\n"


def test_a_dockerfile(run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context/greeting.txt").write_text("good morning\n")
    (tmp_path / "context/secret.env").write_text("TOKEN=1\n")
    (tmp_path / "context/.dockerignore").write_text("*.env\n")
    (tmp_path / "context/Dockerfile").write_text(
        textwrap.dedent(
            """\
            FROM scratch AS files
            COPY . /all/

            FROM scratch
            ARG WHO=nobody
            COPY --from=files /all/ /srv/app/
            COPY <<EOT /srv/who
            for $WHO
            EOT
            """
        )
    )
    output = run(
        f"{SLIM}.dockerfile_commands('ENV FOLDER=/srv/app', 'WORKDIR $FOLDER', 'COPY context/*.txt ./', "
        "'RUN ls > listing', context_dir=here)",
        "print(open('/srv/app/greeting.txt').read().strip(), open('/srv/app/listing').read().split())",
        more="""
        if farcall.is_local():
            whole = farcall.Image.from_dockerfile(here / "context/Dockerfile", build_args={"WHO": "Ada"})
            print(whole.build().object_id[:3])
        """,
    )
    assert output == "im-\ngood morning ['greeting.txt', 'listing']\n"


def test_local_files(run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/one.txt").write_text("one")
    (tmp_path / "data/two.log").write_text("two")
    output = run(
        f"{SLIM}.add_local_dir(here / 'data', '/baked', copy=True, ignore=['*.log']).run_commands('ls /baked > /seen')"
        ".add_local_file(here / 'data/two.log', '/mounted/')",
        """
        import os
        print(open("/seen").read().split(), os.listdir("/baked"), open("/mounted/two.log").read())
        try:
            open("/mounted/two.log", "w")
        except OSError as error:
            print(error.strerror)
        """,
    )
    assert output == "['one.txt'] ['one.txt'] two\nRead-only file system\n"


def test_what_containers_write_stays_theirs(run: Callable[..., str]) -> None:
    body = """
        import os
        print(os.path.exists("/usr/lib/mark"))
        open("/usr/lib/mark", "w").close()
        os.remove("/etc/os-release")
        """
    assert run(SLIM, body) == "False\n"
    assert run(SLIM, body) == "False\n"


def test_a_package_that_does_not_exist(run: Callable[..., str]) -> None:
    output = run(f"{SLIM}.pip_install('no-such-package-of-farcall')", "pass", check=False)
    assert "no-such-package-of-farcall" in output and "pip install" in output
    assert "Traceback" not in output
    output = run(f"{SLIM}.apt_install('no-such-package-of-farcall')", "pass", check=False)
    assert "Unable to locate package no-such-package-of-farcall" in output
    assert "Traceback" not in output


def test_names(run: Callable[..., str]) -> None:
    output = run(
        "farcall.Image.from_name('tests-six')",
        "import six; print(six.__version__)",
        more=f"""
        built = {SLIM}.pip_install('six==1.17.0')
        if farcall.is_local():
            built.build()
            built.publish('tests-six')
            assert farcall.Image.from_id(built.object_id) is not None
        """,
    )
    assert output == "1.17.0\n"
