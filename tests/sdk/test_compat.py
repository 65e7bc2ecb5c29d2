"""`import modal` after `compat.install()`, and old names."""

import subprocess
import sys
import textwrap

import pytest

import farcall
from farcall import compat
from farcall.errors import DeprecationError


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_is_installed_unless_asked_for() -> None:
    assert run("import farcall, sys; farcall.App; print('farcall.compat' in sys.modules)") == "False\n"
    assert not compat.installed()


def test_modal_is_farcall() -> None:
    output = run(
        """
        import sys
        from farcall import compat
        compat.install()
        compat.install()
        print(sum(type(finder).__module__ == "farcall.compat" for finder in sys.meta_path), compat.installed())

        import farcall
        import modal
        import modal.exception
        import modal.image, modal.volume, modal.functions, modal.experimental, modal.types, modal.gpu
        from modal import App, Image, method, enter
        from modal.exception import InvalidError, Error, ExecTimeoutError, ImageBuildError, TimeoutError
        import farcall.sdk.app, farcall.server

        print(modal is farcall, modal.exception is farcall.errors, modal.image is farcall.sdk.image)
        print(App is farcall.App, Error is farcall.errors.FarcallError, TimeoutError is farcall.errors.TimeoutError)
        print(modal.__spec__.name, modal.exception.__spec__.name, farcall.server.__name__)
        print(modal.Error is Error, issubclass(InvalidError, Error))
        try:
            import modal.nonsense
        except ModuleNotFoundError as error:
            print(error.name)
        import importlib, pickle
        print(pickle.loads(pickle.dumps(InvalidError)) is InvalidError)
        print(importlib.import_module("farcall.errors") is modal.exception)
        """
    )
    assert output.splitlines() == [
        "1 True",
        "True True True",
        "True True True",
        "farcall farcall.errors farcall.server",
        "True True",
        "modal.nonsense",
        "True",
        "True",
    ]


def test_a_reference_program_declares_all_there_is() -> None:
    output = run(
        """
        from farcall import compat
        from farcall.sdk import local
        compat.install()
        local.use_local()

        import modal

        image = modal.Image.debian_slim(python_version=None).env({"A": "1"})
        app = modal.App("example", image=image, secrets=[modal.Secret.from_dict({"B": "2"})])
        volume = modal.Volume.from_name("v", create_if_missing=True)
        queue = modal.Queue.from_name("q", create_if_missing=True)

        with image.imports():
            import a_module_that_is_not_here

        @app.function(serialized=True, gpu="A100", volumes={"/data": volume}, timeout=600, retries=3)
        @modal.concurrent(max_inputs=10)
        def train(x):
            return x

        @app.function(serialized=True)
        @modal.fastapi_endpoint(method="POST", docs=True)
        def endpoint(x: int):
            return x

        @app.cls(serialized=True, scaledown_window=300)
        class Model:
            name: str = modal.parameter(default="m")

            @modal.enter()
            def load(self):
                self.loaded = True

            @modal.method()
            def run(self, x):
                return f"{self.name} {x} {self.loaded}"

            @modal.exit()
            def bye(self):
                print("bye")

        @app.function(serialized=True, schedule=modal.Cron("0 * * * *"), concurrency_limit=2)
        def square(x):
            return x * x

        @app.local_entrypoint()
        def main(n: int = 3):
            print(list(square.map(range(n))), Model(name="k").run.remote(1))
            try:
                train.remote(1)
            except modal.exception.UnimplementedError as error:
                print(error)

        with modal.enable_output(), app.run():
            main()
        """
    )
    lines = output.splitlines()
    assert lines[0] == "[0, 1, 4] k 1 True"
    assert lines[1].startswith("train cannot be called: it is declared with volumes=")
    assert lines[2:] == ["bye"]


def test_old_names_work_with_one_line_each() -> None:
    with pytest.warns(DeprecationError, match="Stub is now App") as caught:
        stub = compat.old_name("Stub")
    assert stub is farcall.App
    assert len(caught) == 1
    with pytest.warns(DeprecationError, match="web_endpoint is now fastapi_endpoint") as caught:
        farcall.web_endpoint(method="GET")
    assert caught[0].filename == __file__
    from farcall.sdk import gpu

    with pytest.warns(DeprecationError, match='now the string "A100-80GB:2"'):
        assert gpu.A100(count=2, size="80GB") == "A100-80GB:2"
    with pytest.warns(DeprecationError, match=r"Image\.copy_local_dir is now"):
        farcall.Image.debian_slim().copy_local_dir(".", "/root/x")
    with pytest.raises(AttributeError, match="no_such_name"):
        compat.old_name("no_such_name")
