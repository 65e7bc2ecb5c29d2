"""Images, as a program's author builds and uses them: real builds on a real Debian, through the command line.

All tests share the content store of the session: Debian itself is made once.
"""

import os
import shutil
import subprocess
import textwrap
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import pytest

from farcall.builder import pythons

Program = Callable[[str], Path]


class Farcall(Protocol):
    root: Path
    environment: dict[str, str]

    def farcall(self, *arguments: str | Path, check: bool = True, timeout: float = 60, **environment: str): ...  # type: ignore[no-untyped-def]


BUILD_SECONDS = 500  # the first build makes Debian
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


def test_imports_are_noted_for_the_next_container(installation: Farcall, tmp_path: Path) -> None:
    """It is made with a list of the files that the first container's modules came from."""
    program = tmp_path / "program.py"
    program.write_text(
        f"import farcall\nimage = {SLIM}\napp = farcall.App('imports', image=image)\n"
        "@app.function()\ndef late():\n    import wave\n    print(wave.__spec__.origin, wave.__spec__.cached)\n"
        "@app.local_entrypoint()\ndef main():\n    late.remote()\n"
    )
    first = installation.farcall("run", program, timeout=BUILD_SECONDS).stdout
    store = Path(installation.environment["XDG_DATA_HOME"], "farcall/content/local")
    if not os.listdir(store / "erofs"):
        pytest.skip("needs EROFS mounts: other roots have nothing to gain by it")
    wanted = set(first.encode().split())
    noted = [file.read_bytes().split(b"\0") for file in (store / "imports").glob("*/*")]
    [mine] = [paths for paths in noted if wanted <= set(paths)]
    assert not any(b"/farcall/" in path for path in mine)
    assert installation.farcall("run", program, timeout=BUILD_SECONDS).stdout == first


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


WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
# The private repository's package builds itself, so that pip needs nothing from elsewhere.
BACKEND = f"""\
import zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None):
    name = "private_lib-1-py3-none-any.whl"
    with zipfile.ZipFile(directory + "/" + name, "w") as wheel:
        wheel.write("private_lib.py")
        wheel.writestr("private_lib-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: private-lib\\nVersion: 1\\n")
        wheel.writestr("private_lib-1.dist-info/WHEEL", {WHEEL!r})
        wheel.writestr("private_lib-1.dist-info/RECORD", "")
    return name
"""
POETRY_PROJECT = """\
[tool.poetry]
name = "project"
version = "1"
description = ""
authors = []
[tool.poetry.dependencies]
python = "^3.11"
served-always = "^1.0"
[tool.poetry.group.extra.dependencies]
served-sometimes = "^1.0"
[[tool.poetry.source]]
name = "served"
url = "https://localhost/simple/"
priority = "primary"
"""
LOCKED = """
[[package]]
name = "{name}"
version = "1.0"
description = ""
optional = false
python-versions = "*"
groups = ["{group}"]
files = [
    {{file = "{file}", hash = "sha256:{sha256}"}},
]

[package.source]
type = "legacy"
url = "https://localhost/simple"
reference = "served"
"""
# The hash is what poetry makes of the project.
POETRY_LOCK_END = """
[metadata]
lock-version = "2.1"
python-versions = "^3.11"
content-hash = "825ce8a3f6d2d6294a91db252b76e49c6988440729c597eadc5bbdb2e6cc69c5"
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `package_hosts.py` serves, and the script beside it: two wheels, a private repository, a certificate."""
    folder = tmp_path_factory.mktemp("hosts")
    shutil.copy(Path(__file__).parent / "package_hosts.py", folder)
    (folder / "login").write_text("ada:squeamish")
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests"]
    certificate += ["-addext", "subjectAltName=DNS:github.com,DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(certificate, cwd=folder, check=True, capture_output=True)
    (folder / "wheels").mkdir()
    for name in ("served_always", "served_sometimes"):
        with zipfile.ZipFile(folder / f"wheels/{name}-1.0-py3-none-any.whl", "w") as wheel:
            parts = {
                f"{name}.py": "WORD = 'served'\n",
                f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
                f"{name}-1.0.dist-info/WHEEL": WHEEL,
                f"{name}-1.0.dist-info/RECORD": "",
            }
            for path, text in parts.items():
                wheel.writestr(zipfile.ZipInfo(path), text)
    work = folder / "work"
    work.mkdir()
    (work / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "private-lib"\nversion = "1"\n'
    )
    # Builds itself, so that pip needs nothing from elsewhere.
    (work / "backend.py").write_text(BACKEND)
    (work / "private_lib.py").write_text("WORD = 'private'\n")
    git = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@localhost"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "The library"], ["tag", "v1"]):
        subprocess.run([*git, *command], cwd=work, check=True, capture_output=True)
    subprocess.run([*git, "clone", "-q", "--bare", work, folder / "git/me/lib.git"], check=True, capture_output=True)
    shutil.rmtree(work)
    return folder


@pytest.fixture
def served(hosts: Path) -> str:
    """An expression for a Debian whose commands find `hosts` on their loopback."""
    return (
        f"{SLIM}.add_local_dir({str(hosts)!r}, '/srv/hosts', copy=True)"
        ".env({'GIT_SSL_CAINFO': '/srv/hosts/cert.pem', 'REQUESTS_CA_BUNDLE': '/srv/hosts/cert.pem'})"
        ".run_commands('printf \"[http]\\\\n curloptResolve = github.com:443:127.0.0.1\\\\n\" > /etc/gitconfig')"
        ".shell(['python3', '/srv/hosts/package_hosts.py'])"
    )


def test_a_private_repository(run: Callable[..., str], served: str, connected: Farcall) -> None:
    def install(token: str) -> str:
        secret = f"farcall.Secret.from_dict({{'GITHUB_TOKEN': {token!r}}})"
        return f"{served}.pip_install_private_repos('github.com/me/lib@v1', git_user='ada', secrets=[{secret}])"

    refused = run(install("wrong"), "pass", check=False)
    assert "Authentication failed for 'https://github.com/me/lib/'" in refused
    body = """
        import private_lib, subprocess
        print(private_lib.WORD, private_lib.__file__)
        places = ["/etc", "/root", "/usr/local", "/var"]
        print(subprocess.run(["grep", "-rl", "squeamish", *places], capture_output=True, text=True).stdout)
        """
    output = run(install("squeamish"), body)
    assert output.split() == ["private", "/usr/local/lib/python3.11/dist-packages/private_lib.py"]


def test_a_poetry_project(run: Callable[..., str], served: str, hosts: Path, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(POETRY_PROJECT)
    lock = "# This file is automatically @generated by Poetry 2.1.4 and should not be changed by hand.\n"
    for name, group in (("served-always", "main"), ("served-sometimes", "extra")):
        [wheel] = (hosts / "wheels").glob(f"{name.replace('-', '_')}-*")
        lock += LOCKED.format(name=name, group=group, file=wheel.name, sha256=sha256(wheel.read_bytes()).hexdigest())
    (tmp_path / "poetry.lock").write_text(lock + POETRY_LOCK_END)
    body = """
        from importlib.metadata import distributions
        print(sorted(d.name for d in distributions() if d.name.startswith("served")))
        """
    image = f"{served}.poetry_install_from_file(here / 'pyproject.toml', poetry_version='2.1.4'"
    assert run(f"{image}, without=['extra'])", body) == "['served_always']\n"
    (tmp_path / "poetry.lock").unlink()
    assert run(f"{image}, ignore_lockfile=True)", body) == "['served_always', 'served_sometimes']\n"


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
