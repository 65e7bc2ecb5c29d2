"""App: declaring, duplicates, include, the run block, and what a declaration becomes."""

import os
import pickle
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest

import farcall
from farcall.errors import DeprecationError, FarcallWarning, InvalidError
from farcall.sdk import build, variants
from farcall.sdk.options import Declaration
from farcall.spec.function import Concurrency, FunctionSpec, RetryPolicy

app = farcall.App("test-app", secrets=[farcall.Secret.from_dict({"A": "app", "B": "app", "C": "app"})])


@app.function(
    cpu=(1, 2),
    memory=512,
    timeout=10,
    retries=2,
    min_containers=1,
    max_containers=3,
    buffer_containers=1,
    scaledown_window=5,
    secrets=[farcall.Secret.from_dict({"B": "secret", "C": "secret"})],
    env={"C": "env", "D": None},
    block_network=True,
    single_use_containers=True,
    ephemeral_disk=1024,
    cloud="aws",
    region=["eu"],
    nonpreemptible=True,
)
def everything(x: int) -> int:
    return x


@app.function()
def plain() -> None: ...


def specs(of: farcall.App) -> dict[str, FunctionSpec]:
    return {spec.name: spec for spec in build.Preparation(of, "ap-test", build.Surroundings(local=True)).functions()}


def run_program(folder: Path, program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script of its own; in local mode, unless the program turns that off."""
    script = folder / "program.py"
    script.write_text("from farcall.sdk import local\nlocal.use_local()\n" + textwrap.dedent(program))
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env=os.environ | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_declaration_becomes_a_spec() -> None:
    spec = specs(app)["everything"]
    assert spec.function_id.startswith("fu-")
    assert spec.cpu == (1.0, 2.0)
    assert spec.memory == (512, 512)
    assert (spec.timeout, spec.startup_timeout, spec.disk) == (10.0, 10.0, 1024)
    assert spec.retries == RetryPolicy(max_retries=2, initial_delay=1.0, backoff_coefficient=1.0)
    scaling = spec.scaling
    assert (scaling.min_containers, scaling.max_containers, scaling.buffer_containers) == (1, 3, 1)
    assert scaling.scaledown_window == 5.0
    assert [secret.values for secret in spec.secrets] == [
        {"A": "app", "B": "app", "C": "app"},
        {"B": "secret", "C": "secret"},
        {"C": "env"},
    ]
    assert spec.block_network
    assert spec.single_use_containers
    assert spec.unimplemented == ()


def test_defaults() -> None:
    spec = specs(app)["plain"]
    assert spec.cpu == (0.125, None)
    assert spec.memory == (128, None)
    assert (spec.timeout, spec.startup_timeout) == (300.0, 300.0)
    assert spec.retries.max_retries == 0
    assert not spec.block_network


def test_ids_follow_from_app_and_name() -> None:
    first, again = (build.Preparation(app, "ap-1", build.Surroundings(local=True)).functions() for _ in range(2))
    other = build.Preparation(app, "ap-2", build.Surroundings(local=True)).functions()
    assert [spec.function_id for spec in first] == [spec.function_id for spec in again]
    assert not {spec.function_id for spec in first} & {spec.function_id for spec in other}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, r"@app\.function: timeout=0 is outside 1 to 86400 seconds"),
        ({"timeout": 86401}, "outside 1 to 86400"),
        ({"timeout": None}, "timeout=None is not a number of seconds"),
        ({"startup_timeout": 0.5}, "startup_timeout=0.5 is outside"),
        ({"scaledown_window": 1}, "scaledown_window=1 is outside 2 to 3600"),
        ({"min_containers": 3, "max_containers": 2}, "min_containers=3 is above max_containers=2"),
        ({"min_containers": -1}, "min_containers=-1 is below 0"),
        ({"max_containers": 0}, "max_containers=0 is below 1"),
        ({"cpu": (2, 1)}, "request above its limit"),
        ({"cpu": 0}, "not a positive number"),
        ({"memory": (1024, 512)}, "request above its limit"),
        ({"memory": 0.5}, "not a positive whole number"),
        ({"cpu": float("nan")}, "not a positive number"),
        ({"cpu": float("inf")}, "not a positive number"),
        ({"memory": (1, 2, 3)}, r"neither a number nor \(request, limit\)"),
        ({"retries": -1}, "retries=-1 is not 0 to 1000"),
        ({"volumes": {"/": farcall.Volume.from_name("v")}}, "cannot be mounted at /"),
        ({"volumes": {"/root": farcall.Volume.from_name("v")}}, "cannot be mounted at /root"),
        ({"volumes": {"/tmp/": farcall.Volume.from_name("v")}}, "cannot be mounted at /tmp"),
        ({"volumes": {"/data": "v"}}, "is a str, not a farcall.Volume"),
        ({"volumes": ["/data"]}, "is no dict"),
        ({"volumes": {"data": farcall.Volume.from_name("v")}}, "not an absolute, plain path"),
        ({"volumes": {"/a/../b": farcall.Volume.from_name("v")}}, "not an absolute, plain path"),
        ({"env": {"A": 1}}, r"env\['A'\] is a int"),
        ({"max_inputs": 2}, "single_use_containers=True"),
        ({"gpus": 1}, "has no parameter 'gpus'; did you mean 'gpu'"),
    ],
)
def test_a_wrong_option_is_refused_where_it_is_written(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        app.function(**options)


def test_one_volume_cannot_be_mounted_twice() -> None:
    volume = farcall.Volume.from_name("v")
    with pytest.raises(InvalidError, match="both /a and /b"):
        app.function(volumes={"/a": volume, "/b": volume})
    with pytest.raises(InvalidError, match="both /a and /b"):
        app.function(volumes={"/a": volume, "/b": farcall.Volume.from_name("v").read_only()})


def test_volumes_of_app_and_function_are_mounted_together_or_refused() -> None:
    one, two = farcall.Volume.from_name("one"), farcall.Volume.from_name("two")
    own = farcall.App(volumes={"/a": one})

    @own.function(volumes={"/a": two}, serialized=True)
    def replaced() -> None: ...

    @own.function(volumes={"/a/b": two}, serialized=True)
    def within() -> None: ...

    specs = {volume.path: volume.name for volume in variants.volumes_of(own, replaced.declaration)}
    assert specs == {"/a": "two"}
    with pytest.raises(InvalidError, match="/a/b is within /a"):
        variants.volumes_of(own, within.declaration)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_retries": -1}, "not 0 to 1000"),
        ({"max_retries": 1001}, "not 0 to 1000"),
        ({"max_retries": 1, "backoff_coefficient": 0.5}, "outside 1 to 10"),
        ({"max_retries": 1, "initial_delay": 61}, "outside 0 to 60"),
        ({"max_retries": 1, "max_delay": 0}, "above 0 and up to 60"),
    ],
)
def test_retries_have_ranges(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        farcall.Retries(**options)


def test_retries_delays() -> None:
    policy = farcall.Retries(max_retries=5, initial_delay=0.5, backoff_coefficient=3, max_delay=4).policy
    assert [policy.delay(number) for number in (1, 2, 3, 4, 1000)] == [0.5, 1.5, 4.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"concurrency_limit": 2}, {"max_containers": 2}),
        ({"keep_warm": 1}, {"min_containers": 1}),
        ({"container_idle_timeout": 9}, {"scaledown_window": 9}),
    ],
)
def test_old_names_work_with_one_line_each(old: dict[str, Any], new: dict[str, Any]) -> None:
    with pytest.warns(DeprecationError, match=f"{next(iter(old))}= is now {next(iter(new))}=") as caught:
        declaration = Declaration.of("@app.function", old)
    assert declaration.scaling == Declaration.of("@app.function", new).scaling
    assert [warning.filename for warning in caught] == [__file__]


def test_allow_concurrent_inputs_is_an_old_name_for_the_decorator() -> None:
    with pytest.warns(DeprecationError, match="allow_concurrent_inputs= is now the decorator @farcall.concurrent"):
        declaration = Declaration.of("@app.function", {"allow_concurrent_inputs": 10})
    assert declaration.concurrency == Concurrency(10, 10)


def test_decorators_need_parentheses() -> None:
    def f() -> None: ...

    for decorator in (app.function, app.cls, app.local_entrypoint, farcall.method, farcall.enter, farcall.concurrent):
        with pytest.raises(InvalidError, match="needs parentheses"):
            decorator(f)  # type: ignore[arg-type]


def test_the_later_of_two_functions_counts() -> None:
    own = farcall.App("own")
    own.function(name="f", serialized=True)(lambda: 1)
    with pytest.warns(FarcallWarning, match="two functions named f") as caught:
        own.function(name="f", serialized=True)(lambda: 2)
    assert caught[0].filename == __file__
    assert own.registered_functions["f"].local() == 2


def test_include_merges_functions_classes_and_tags() -> None:
    one, two = farcall.App("one", tags={"a": "1", "b": "1"}), farcall.App("two", tags={"b": "2", "c": "2"})
    two.function(name="f", serialized=True)(lambda: 2)
    assert one.include(two) is one
    assert list(one.registered_functions) == ["f"]
    assert one.tags == {"a": "1", "b": "1", "c": "2"}
    assert [spec.name for spec in build.Preparation(one, "ap-x", build.Surroundings(local=True)).functions()] == ["f"]


def test_two_entrypoints_cannot_have_one_name() -> None:
    own = farcall.App()
    assert own.local_entrypoint(name="main")(lambda: 5)() == 5
    with pytest.raises(InvalidError, match="two local entrypoints of this app are named main"):
        own.local_entrypoint(name="main")(lambda: 6)


def test_an_app_travels_as_its_name() -> None:
    copy = pickle.loads(pickle.dumps(app))
    assert (copy.name, copy.app_id, copy.registered_functions) == ("test-app", None, {})


def test_run_gives_the_app_an_id_for_good_and_runs_functions(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import asyncio, farcall
        app = farcall.App("a")

        @app.function()
        def double(x):
            return 2 * x

        @app.function()
        def both(x):
            return double.remote(x) + double.local(x)

        assert app.app_id is None
        with app.run() as running:
            assert running is app and app.app_id.startswith("ap-")
            first = app.app_id
            print(double.remote(4), list(double.map(range(3))), both.remote(1), double.spawn(5).get())
            try:
                with app.run():
                    pass
            except farcall.errors.InvalidError as error:
                print(error)
        assert app.app_id == first
        try:
            double.remote(1)
        except farcall.errors.InvalidError as error:
            print(error)

        async def main():
            async with app.run():
                assert app.app_id != first
                print(await double.remote.aio(4), [x async for x in double.map.aio(range(3))])
                print(await farcall.FunctionCall.gather.aio(double.spawn(1), await double.spawn.aio(2)))
            async with app.run.aio():
                print(await both.remote.aio(2))

        asyncio.run(main())
        """,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "8 [0, 2, 4] 4 10"
    assert "cannot be nested" in lines[1]
    assert "its app is not running" in lines[2]
    assert lines[3:] == ["8 [0, 2, 4]", "[2, 4]", "8"]
    assert "double.spawn() blocks the running event loop; inside async code write `await double.spawn.aio(...)`" in (
        done.stderr
    )


def test_what_is_declared_while_the_app_runs_says_so(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import farcall
        app = farcall.App("a")
        with app.run():
            @app.function()
            def late(x):
                return x
            late.remote(1)
        """,
    )
    assert "late was added to its app after app.run() began; declare it before" in done.stderr


def test_a_forked_child_does_not_stop_its_parents_app(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import os, farcall
        app = farcall.App("a")

        @app.function()
        def f(x):
            return x

        with app.run():
            child = os.fork()
            if child:
                os.waitpid(child, 0)
                print("parent", f.remote(1))
        if not child:
            print("child", flush=True)
            os._exit(0)
        """,
    )
    assert done.stdout.split("\n")[:2] == ["child", "parent 1"], done.stderr


def test_a_module_that_runs_its_app_ends_there_in_a_container(tmp_path: Path) -> None:
    (tmp_path / "unguarded.py").write_text(
        textwrap.dedent(
            """
            import farcall
            app = farcall.App("a")

            @app.function()
            def f(x):
                return x

            def go():
                with app.run():
                    print(f.remote(1))

            go()
            after = 1
            """
        )
    )
    done = run_program(
        tmp_path,
        """
        import farcall
        from farcall.sdk import context
        from farcall.sdk.app import EndOfModule
        context.enter_container("ap-x")
        try:
            import unguarded
        except EndOfModule:
            print("ended")
        def later():
            with farcall.App("b").run():
                pass
        if farcall.is_local():
            later()
        """,
    )
    assert done.stdout == "ended\n", done.stderr
    assert done.stderr == ""  # the warning is the program's that started the app


def test_not_running_detached_or_interactive_elsewhere() -> None:
    with pytest.raises(farcall.errors.UnimplementedError, match="interactive"):
        app.run(interactive=True)
    with pytest.raises(farcall.errors.UnimplementedError, match=r"App\.deploy is not available"):
        app.deploy()
    with pytest.raises(InvalidError, match="is not running"):
        app.stop()


def test_a_program_that_uses_nothing_new_gives_no_warning(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import farcall
        app = farcall.App("a", image=farcall.Image.host())

        @app.function(schedule=farcall.Period(hours=1))
        def f(x=1):
            return x

        with app.run():
            print(f.remote())
        """,
        PYTHONWARNINGS="error",
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_warnings_are_ours() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FarcallWarning)
        farcall.App("quiet").function(name="f", serialized=True)(lambda: 1)
