"""`import modal` under the command line: what it means, how to turn it off, what is not there yet, old names."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Installation

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(server: Installation, tmp_path: Path) -> Run:
    """Runs a program by a command; the words after `FILE` are its own."""

    def run(program: str, *command: str, arguments: tuple[str, ...] = (), **environment: str) -> Run:
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(program))
        return server.farcall(*command, path, *arguments, cwd=tmp_path, check=False, **environment)  # type: ignore[return-value]

    return run  # type: ignore[return-value]


IMPORTS = """
import modal

app = modal.App("imports")

@app.function()
def name():
    import modal
    return modal.__name__, modal.__file__.split("/")[-2]

if __name__ == "__main__":
    with app.run():
        print(name.remote(), modal.__name__)

@app.local_entrypoint()
def main():
    print(name.remote(), modal.__name__)
"""


@pytest.mark.parametrize("command", ["run", "python"])
def test_the_first_line_says_what_modal_is(run: Run, command: str) -> None:
    ran = run(IMPORTS, command)
    assert ran.stdout == "('farcall', 'farcall') farcall\n", ran.stderr
    first = ran.stderr.splitlines()[0]
    assert first.startswith("python: ")
    assert first.endswith("; `import modal` gives farcall")
    quiet = run(IMPORTS, command, "--quiet")
    assert (quiet.stdout, quiet.stderr) == (ran.stdout, "")


@pytest.mark.parametrize("command", ["run", "python"])
@pytest.mark.parametrize(("flags", "environment"), [(["--no-compat"], {}), ([], {"FARCALL_COMPAT": "false"})])
def test_turned_off_there_is_no_modal(run: Run, command: str, flags: list[str], environment: dict[str, str]) -> None:
    ran = run(IMPORTS, command, *flags, **environment)
    assert ran.returncode == 1
    assert "`import modal` gives farcall" not in ran.stderr
    assert "ModuleNotFoundError: No module named 'modal'" in ran.stderr
    assert "keeps `import modal` from giving farcall: leave that out" in ran.stderr
    assert "Install it" not in ran.stderr


@pytest.mark.parametrize("command", ["run", "python"])
def test_a_modal_that_is_installed(run: Run, command: str, tmp_path: Path) -> None:
    """It is found only where compat is turned off."""
    (tmp_path / "modal").mkdir()
    (tmp_path / "modal" / "__init__.py").write_text("print('the other one')\n")
    assert run(IMPORTS, command).stdout == "('farcall', 'farcall') farcall\n"
    ran = run(
        "import modal\nimport farcall\napp = farcall.App()\n@app.function()\ndef f(): ...\n", command, "--no-compat"
    )
    assert ran.stdout == "the other one\n", ran.stderr


def test_a_program_of_our_own_sees_no_modal(server: Installation, tmp_path: Path) -> None:
    """Without the command line `import farcall` changes nothing about other imports."""
    done = subprocess.run(
        [sys.executable, "-c", "import farcall; farcall.App()\nimport modal"],
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "No module named 'modal'" in done.stderr


ERRORS = """
Error: AlreadyExistsError AuthError ClientClosed ConnectionError DataLossError DeserializationError ExecutionError
Error: InternalError InternalFailure InvalidError ConflictError LogsFetchError NotFoundError PermissionDeniedError
Error: RemoteError RequestSizeError ResourceExhaustedError SandboxFilesystemError SandboxFilesystemNotFoundError
Error: SandboxFilesystemPermissionError SandboxTerminatedError SerializationError ServiceError SnapshotCreationError
Error: TimeoutError UnimplementedError VersionError WorkspaceManagementError
RemoteError: ImageBuildError
TimeoutError: ExecTimeoutError FunctionTimeoutError InteractiveTimeoutError MountUploadTimeoutError OutputExpiredError
TimeoutError: SandboxTimeoutError VolumeUploadTimeoutError
BaseException: InputCancellation
Exception: ModuleNotMountable
UserWarning: AsyncUsageWarning DeprecationError ServerWarning InternalAPIWarning
"""


def test_errors_can_be_caught_by_their_names() -> None:
    program = f"""
import builtins
from farcall import compat
compat.install()
import modal.exception as errors
for line in {ERRORS!r}.strip().splitlines():
    base, _, names = line.partition(": ")
    for name in names.split():
        assert issubclass(getattr(errors, name), getattr(errors, base, getattr(builtins, base, None))), (name, base)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# --- what is not there yet

FEATURES = {
    "volumes= with a CloudBucketMount": '@app.function(volumes={"/data": modal.CloudBucketMount("b")})',
    "Image.micromamba()": "@app.function(image=modal.Image.micromamba())",
    "Image.pip_install(gpu='A10G')": '@app.function(image=modal.Image.debian_slim().pip_install("a", gpu="A10G"))',
    "enable_memory_snapshot=True": "@app.function(enable_memory_snapshot=True)",
    "network_file_systems=": '@app.function(network_file_systems={"/n": modal.NetworkFileSystem.from_name("n")})',
    "proxy=": '@app.function(proxy=modal.Proxy.from_name("p"))',
}


@pytest.mark.parametrize(("feature", "decorators"), FEATURES.items(), ids=list(FEATURES))
def test_a_feature_that_is_not_there_is_an_error_of_the_call(run: Run, feature: str, decorators: str) -> None:
    program = f"""
import modal

app = modal.App("features")

{decorators}
def train(x):
    return x

@app.function()
def plain(x):
    return x + 1

@app.local_entrypoint()
def main(call: bool = False):
    print(plain.remote(1))
    if call:
        train.remote(1)
"""
    ran = run(program, "run")
    assert (ran.returncode, ran.stdout) == (0, "2\n"), ran.stderr
    ran = run(program, "run", arguments=("--call",))
    assert (ran.returncode, ran.stdout) == (1, "2\n"), ran.stderr
    error = next(line for line in ran.stderr.splitlines() if line.startswith("farcall.errors.UnimplementedError"))
    assert "train cannot be called: it is declared with" in error
    assert feature in error


@pytest.mark.parametrize(
    ("use", "named"),
    [
        ('modal.Dict.from_name("d", create_if_missing=True)["a"] = 1', "Dict"),
        ('modal.Queue.from_name("q", create_if_missing=True).put(1)', "Queue.put"),
        ('modal.Sandbox.create("ls", app=app)', "Sandbox.create"),
        ('modal.Function.from_name("other", "f").remote(1)', "Function.from_name('other', 'f')"),
        ('modal.Cls.from_name("other", "C")().run.remote(1)', "Cls.from_name('other', 'C')"),
        ("app.deploy()", "App.deploy"),
        ('modal.App.lookup("a", create_if_missing=True)', "App.lookup"),
        ('modal.Volume.from_id("vo-1")', "Volume.from_id"),
    ],
)
def test_an_object_that_is_not_there_is_named_where_it_is_used(run: Run, use: str, named: str) -> None:
    ran = run(
        f"import modal\napp = modal.App()\n@app.local_entrypoint()\ndef main():\n    print('begun')\n    {use}\n", "run"
    )
    assert (ran.returncode, ran.stdout) == (1, "begun\n"), ran.stderr
    assert "farcall.errors.UnimplementedError" in ran.stderr
    assert named in ran.stderr


def test_a_web_function_says_how_it_is_called(run: Run) -> None:
    ran = run(
        """
        import modal
        app = modal.App()

        @app.function()
        @modal.fastapi_endpoint()
        def hello():
            return 1

        @app.local_entrypoint()
        def main():
            hello.remote()
        """,
        "run",
    )
    assert ran.returncode == 1
    assert "UnimplementedError: hello cannot be called: it is declared with @fastapi_endpoint" in ran.stderr


# --- old names

OLD = {
    "Stub": "app2 = modal.Stub('x')\nmodal.Stub('y')",
    "concurrency_limit=": "app.function(concurrency_limit=1)(f)\napp.function(concurrency_limit=2, name='g')(f)",
    "keep_warm=": "app.function(keep_warm=1)(f)\napp.function(keep_warm=0, name='g')(f)",
    "container_idle_timeout=": "add(container_idle_timeout=5)(f)\nadd(container_idle_timeout=9, name='g')(f)",
    "allow_concurrent_inputs=": "add(allow_concurrent_inputs=1)(f)\nadd(allow_concurrent_inputs=2, name='g')(f)",
    "web_endpoint": "modal.web_endpoint()(f)\nmodal.web_endpoint(method='POST')(f)",
    'the string "A10G"': "modal.gpu.A10G()\nmodal.gpu.A10G()",
    "Image.copy_local_dir": "modal.Image.debian_slim().copy_local_dir('.', '/a').copy_local_dir('.', '/b')",
}


@pytest.mark.parametrize(("name", "use"), OLD.items(), ids=list(OLD))
def test_an_old_name_works_with_one_line(run: Run, name: str, use: str) -> None:
    ran = run(
        f"""
import modal
import modal.gpu

app = modal.App("old")

def f(x):
    return x

add = app.function
{use}

@app.function()
def plain():
    return "works"

@app.local_entrypoint()
def main():
    print(plain.remote())
""",
        "run",
    )
    assert (ran.returncode, ran.stdout) == (0, "works\n"), ran.stderr
    lines = [line for line in ran.stderr.splitlines() if "is now" in line]
    assert len(lines) == 1, ran.stderr
    assert name in lines[0]
    assert "program.py:" in lines[0]


@pytest.mark.parametrize("module", ["modal.nonsense", "modal.wire", "modal.runner"])
def test_our_own_modules_are_not_modals(run: Run, module: str) -> None:
    ran = run(f"import {module}\n", "run")
    assert f"ModuleNotFoundError: No module named '{module}'" in ran.stderr
    assert f"here `modal` is farcall, which has no module '{module}'" in ran.stderr
