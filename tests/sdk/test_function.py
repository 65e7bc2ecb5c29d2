"""Function: what it refuses, its local form, handles, and where its code is found."""

import asyncio
import functools
import pickle
import subprocess
import sys
import warnings
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest

import farcall
from farcall.errors import AsyncUsageWarning, ExecutionError, InvalidError, UnimplementedError
from farcall.sdk import context, source, twin
from farcall.sdk.function import Function, registry
from farcall.sdk.map_inputs import checked_rows
from farcall.spec.gpu import GpuRequest

app = farcall.App("functions")


@app.function()
def double(x: int) -> int:
    """Twice the number."""
    return 2 * x


@app.function()
async def triple(x: int) -> int:
    return 3 * x


@app.function()
def count(n: int) -> Generator[int, None, None]:
    yield from range(n)


@app.function()
async def stream(n: int) -> AsyncGenerator[int, None]:
    for i in range(n):
        yield i


@app.function(is_generator=True)
def returns_a_generator(n: int) -> Generator[int, None, None]:
    return count.local(n)


@pytest.fixture
def running() -> Any:
    """The app with its ids, without a server."""
    for function in app.registered_functions.values():
        function.bind("ap-test")
    yield
    for function in app.registered_functions.values():
        function.unbind()


def test_it_looks_like_the_function_it_wraps() -> None:
    assert double.__name__ == "double"
    assert double.__doc__ == "Twice the number."
    assert double.raw(4) == 8


def test_local_runs_here() -> None:
    assert double.local(4) == 8
    assert asyncio.run(triple.local(3)) == 9
    assert list(count.local(3)) == [0, 1, 2]
    assert list(returns_a_generator.local(2)) == [0, 1]


def test_a_call_without_a_form_names_both() -> None:
    with pytest.raises(InvalidError, match=r"double\.remote\(\.\.\.\).*double\.local\(\.\.\.\)"):
        double(1)  # type: ignore[operator]


def test_what_a_function_is_comes_from_its_code() -> None:
    def kind(function: Any) -> tuple[bool, bool]:
        return function.info_of_code.is_generator, function.info_of_code.is_async

    assert [kind(f) for f in (double, triple, count, stream, returns_a_generator)] == [
        (False, False),
        (False, True),
        (True, False),
        (True, True),
        (True, False),
    ]


def test_the_form_must_fit(running: None) -> None:
    with pytest.raises(InvalidError, match=r"count is a generator: write `for item in count\.remote_gen"):
        count.remote(1)
    with pytest.raises(InvalidError, match=r"count\.remote_gen\(\.\.\.\)` in place of \.spawn"):
        count.spawn(1)
    with pytest.raises(InvalidError, match=r"in place of \.map"):
        count.map([1])
    with pytest.raises(InvalidError, match=r"double is not a generator: write double\.remote"):
        double.remote_gen(1)


def test_starmap_wants_sequences(running: None) -> None:
    wanted = r"double\.starmap wants items that are sequences.*was given 2; write double\.map\("
    rows: Any = [(1,), 2]
    for start in (double.starmap, double.starmap.aio):
        with pytest.raises(InvalidError, match=wanted):
            start(rows)
    with pytest.raises(InvalidError, match=wanted):
        list(checked_rows("double", iter(rows)))
    sized = {"a": 1}.values()
    assert len(checked_rows("double", sized)) == 1

    async def arrive() -> AsyncGenerator[Any, None]:
        for row in rows:
            yield row

    async def read() -> None:
        async for _ in checked_rows("double", arrive()):
            pass

    with pytest.raises(InvalidError, match=wanted):
        asyncio.run(read())


@pytest.mark.parametrize("kwargs", [5, [("a", 1)], {1: 2}])
def test_kwargs_of_a_map_are_a_dict(running: None, kwargs: Any) -> None:
    for start in (double.map, double.for_each, double.spawn_map, double.map.aio):
        with pytest.raises(InvalidError, match=r"kwargs=.* is no dict of keyword arguments"):
            start([1], kwargs=kwargs)


def test_maps_need_iterables(running: None) -> None:
    async def items() -> AsyncGenerator[int, None]:
        yield 1

    with pytest.raises(InvalidError, match="needs an iterable"):
        double.map()
    with pytest.raises(InvalidError, match=r"double\.map\(\[1, 2, 3\]\)"):
        double.map.aio()
    with pytest.raises(InvalidError, match="5 is not iterable"):
        double.map(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match=r"write double\.map\.aio"):
        double.map(items())


def test_outside_a_running_app_a_call_says_what_to_do() -> None:
    for call in (double.remote, double.spawn, double.map):
        with pytest.raises(InvalidError, match=r"double cannot be called: its app is not running.*with app\.run\(\)"):
            call([1])


def test_in_a_container_the_ids_are_those_the_server_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from farcall.sdk import build

    monkeypatch.setattr(context, "_app_id", "ap-there")
    ids = {
        spec.name: spec.function_id
        for spec in build.Preparation(app, "ap-there", build.Surroundings(local=True)).functions()
    }
    try:
        assert double.object_id == ids["double"]
        assert not farcall.is_local()
    finally:
        double.unbind()
    assert ids["double"] not in registry


def test_a_function_travels_as_a_handle(running: None) -> None:
    assert pickle.loads(pickle.dumps(double)) is double
    data = pickle.dumps(double)
    function_id = double.object_id
    double.unbind()
    handle = pickle.loads(data)
    assert isinstance(handle, Function)
    assert handle is not double
    assert (handle.name, handle.object_id) == ("double", function_id)
    with pytest.raises(ExecutionError, match="its code is not here"):
        handle.local(1)
    assert pickle.loads(pickle.dumps(handle)).object_id == function_id


def test_handles_by_id_and_name() -> None:
    assert Function.from_id("fu-1").object_id == "fu-1"
    with pytest.raises(InvalidError, match="starts with fu-"):
        Function.from_id("cs-1")
    with pytest.raises(UnimplementedError, match=r"Function\.from_name\('app', 'f'\)"):
        Function.from_name("app", "f").remote()
    with pytest.raises(InvalidError, match=r"Cls\.from_name\('app', 'Model'\)"):
        Function.from_name("app", "Model.f")


def test_calls_have_ids() -> None:
    call = farcall.FunctionCall.from_id("fc-1")
    assert call.object_id == "fc-1"
    assert pickle.loads(pickle.dumps(call)) == call
    with pytest.raises(InvalidError, match="starts with fc-"):
        farcall.FunctionCall.from_id("fu-1")
    with pytest.raises(ValueError, match="2 to 1 is outside"):
        list(farcall.FunctionCall("fc-1", 3).iter(start=2, end=1))


def test_a_blocking_call_in_a_loop_warns_once(running: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from farcall.sdk import calls

    monkeypatch.setattr(calls, "remote", lambda target, args, kwargs: (target.name, args, kwargs))
    monkeypatch.setattr(twin, "_warned", set())

    async def main() -> list[Any]:
        return [double.remote(number) for number in (1, 2)]

    with pytest.warns(AsyncUsageWarning, match=r"`await double\.remote\.aio\(\.\.\.\)`") as caught:
        assert asyncio.run(main()) == [("double", (1,), {}), ("double", (2,), {})]
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        double.remote(3)


# --- declaring


def test_closures_lambdas_and_methods_are_refused_where_they_are_declared() -> None:
    def local() -> None: ...

    with pytest.raises(InvalidError, match=r"inside another function.*serialized=True"):
        app.function()(local)
    with pytest.raises(InvalidError, match=r"lambda.*serialized=True"):
        app.function()(lambda: 1)

    class Model:
        def method(self) -> None: ...

    Model.method.__qualname__ = "Model.method"
    with pytest.raises(InvalidError, match=r"decorate the class with @app\.cls\(\)"):
        app.function()(Model.method)
    with pytest.raises(InvalidError, match=r"for the class .*write @app\.cls\(\)"):
        app.function()(Model)
    with pytest.raises(InvalidError, match="decorates a function, not 5"):
        app.function()(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="wrap it in one with `def`"):
        app.function()(functools.partial(local))
    with pytest.raises(InvalidError, match="twice"):
        app.function()(double)  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match=r"retries= is not possible"):
        app.function(retries=1, serialized=True)(count.raw)


def test_a_closure_can_be_sent_by_value() -> None:
    own = farcall.App()
    factor = 5

    @own.function(serialized=True)
    def scaled(x: int) -> int:
        return helper(x) * factor

    assert scaled.name == "scaled"
    found = source.find(scaled.raw, serialized=True, include=True)
    assert found.files == ()
    assert found.source.pickled is not None
    assert pickle.loads(found.source.pickled)(2) == 15


def helper(x: int) -> int:
    return x + 1


def test_what_is_sent_by_value_has_a_size() -> None:
    def closure(size: int) -> Any:
        data = bytes(size)
        return lambda: data

    with pytest.warns(farcall.errors.FarcallWarning, match="KiB by value"):
        source.pickled(closure(300 * 1024))
    with pytest.raises(InvalidError, match=r"17\.0 MiB by value, above the limit of 16 MiB"):
        source.pickled(closure(17 * 1024 * 1024))


def test_what_cannot_be_sent_by_value_is_named() -> None:
    lock = __import__("threading").Lock()

    def uses_a_lock() -> Any:
        return lock

    with pytest.raises(farcall.errors.SerializationError, match="uses_a_lock cannot be sent by value"):
        source.pickled(uses_a_lock)


# --- variants


def test_variants_are_declared(running: None) -> None:
    variant = double.with_options(cpu=4, memory=None)
    assert variant.declaration.cpu == (4.0, None)
    assert double.declaration.cpu == (0.125, None)
    assert variant.object_id != double.object_id
    assert variant.with_options(timeout=5).declaration.cpu == (4.0, None)
    assert variant.with_options(cpu=0.125) is double
    assert double.with_options(cpu=4.0) is variant
    assert double.with_options(gpu="T4:2").declaration.gpus == (GpuRequest("T4", 2),)
    assert variant.local(2) == 4
    with pytest.raises(InvalidError, match="request above its limit"):
        double.with_options(cpu=(2, 1))
    with pytest.raises(InvalidError, match="cannot change image"):
        double.with_options(image=farcall.Image.debian_slim())  # type: ignore[call-arg]


# --- context


def test_the_current_input_is_that_of_the_thread_or_task() -> None:
    assert farcall.is_local()
    assert farcall.current_input_id() is None
    assert farcall.current_function_call_id() is None
    context.set_current("fc-abc", 4)
    try:
        assert farcall.current_input_id() == "in-abc-4"
        assert farcall.current_function_call_id() == "fc-abc"
    finally:
        context.set_current(None)
    assert farcall.current_input_id() is None


# --- source


@pytest.fixture
def module_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder on sys.path whose modules are forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_module_brings_its_file(module_folder: Path) -> None:
    (module_folder / "lonely_module.py").write_text("def f(): pass\n")
    import lonely_module  # type: ignore[import-not-found]

    found = source.find(lonely_module.f, serialized=False, include=True)
    path = str(module_folder / "lonely_module.py")
    assert (found.source.module, found.source.qualname, found.source.script) == ("lonely_module", "f", None)
    assert found.source.paths == (str(module_folder),)
    assert [(file.source, file.target) for file in found.files] == [(path, path)]
    assert source.find(lonely_module.f, serialized=False, include=False).files == ()


def test_a_package_brings_its_top_folder(module_folder: Path) -> None:
    inner = module_folder / "a_package" / "inner"
    inner.mkdir(parents=True)
    (module_folder / "a_package" / "__init__.py").touch()
    (inner / "__init__.py").touch()
    (inner / "leaf.py").write_text("def f(): pass\n")
    from a_package.inner import leaf  # type: ignore[import-not-found]

    found = source.find(leaf.f, serialized=False, include=True)
    assert found.source.module == "a_package.inner.leaf"
    assert found.source.paths == (str(module_folder),)
    assert [file.source for file in found.files] == [str(module_folder / "a_package")]


def test_a_namespace_package_brings_all_its_folders(
    module_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    monkeypatch.syspath_prepend(other)
    for folder, name in ((module_folder, "one"), (other, "two")):
        (folder / "spread").mkdir()
        (folder / "spread" / f"{name}.py").write_text("def f(): pass\n")
    from spread import one  # type: ignore[import-not-found]

    found = source.find(one.f, serialized=False, include=True)
    assert {file.source for file in found.files} == {str(module_folder / "spread"), str(other / "spread")}
    assert set(found.source.paths) == {str(module_folder), str(other)}


def test_what_is_installed_brings_nothing() -> None:
    import json

    found = source.find(pytest.main, serialized=False, include=True)
    assert (found.source.paths, found.files) == ((), ())
    found = source.find(json.dumps, serialized=False, include=True)
    assert (found.source.paths, found.files) == ((), ())


def test_a_script_the_command_line_imported_brings_itself(module_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (module_folder / "some_script.py").write_text("def f(): pass\n")
    monkeypatch.setattr(source, "_scripts", {})
    path = str(module_folder / "some_script.py")
    assert source.module_name(path) == "some_script"
    source.register_script("some_script", path)
    import some_script  # type: ignore[import-not-found]

    found = source.find(some_script.f, serialized=False, include=True)
    assert (found.source.script, found.source.paths) == (path, ())
    assert [file.source for file in found.files] == [path]


def test_a_script_named_like_a_module_gets_another_name(tmp_path: Path) -> None:
    assert source.module_name(str(tmp_path / "random.py")) == "random__script"
    assert source.module_name(str(tmp_path / "pytest.py")) == "pytest__script"


def test_a_missing_module_that_is_here_gets_a_line_to_add(module_folder: Path) -> None:
    (module_folder / "my_helpers.py").touch()
    hint = source.hint_for_missing_module("my_helpers.deep")
    assert hint is not None
    assert '.add_local_python_source("my_helpers")' in hint
    assert '.pip_install("pytest")' in str(source.hint_for_missing_module("_pytest"))
    assert source.hint_for_missing_module("json") is None
    missing = source.hint_for_missing_module("there_is_no_such_module.deep")
    assert missing is not None
    assert f"`{sys.executable} -m pip install there_is_no_such_module`" in missing


PROGRAM = """
import pickle, sys
import farcall
from farcall.sdk import local, source

app = farcall.App("a")

class Point:
    pass

@app.function()
def f():
    pass

if __name__ == "__main__":
    local.use_local()
    found = source.find(f.raw, serialized=False, include=True)
    print(found.source.module, found.source.qualname, found.source.script == __file__, len(found.files))
    with app.run():
        pass
    print(sys.modules["point_of"].Point is Point)
    print(pickle.loads(b"cpoint_of\\nPoint\\n.") is Point)
"""


def test_a_script_finds_its_classes_under_its_own_name(tmp_path: Path) -> None:
    script = tmp_path / "point_of.py"
    script.write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["point_of f True 1", "True", "True"], done.stderr


def test_standard_input_is_sent_by_value() -> None:
    program = (
        PROGRAM.partition("if __name__")[0]
        + """
found = source.find(f.raw, serialized=False, include=True)
print(found.source.module, found.source.pickled is not None, found.files)
app.function(name="g")(lambda: 1)
"""
    )
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, timeout=60)
    assert done.stdout == "__main__ True ()\n", done.stderr


def test_a_module_run_with_m_is_found_in_its_package(tmp_path: Path) -> None:
    (tmp_path / "the_package").mkdir()
    (tmp_path / "the_package" / "program.py").write_text(PROGRAM.partition("    with app.run")[0])
    done = subprocess.run(
        [sys.executable, "-m", "the_package.program"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "the_package.program f False 1\n", done.stderr


@pytest.mark.parametrize("timeout", ["5", -1, -0.5, float("nan"), [1], True])
def test_a_timeout_that_is_none_is_refused_at_once(timeout: Any) -> None:
    call = farcall.FunctionCall.from_id("fc-1")
    with pytest.raises(InvalidError, match="timeout="):
        call.get(timeout)
    with pytest.raises(InvalidError, match="timeout="):
        asyncio.run(call.get.aio(timeout=timeout))


@pytest.mark.parametrize("index", [-1, "0", 0.0])
def test_an_index_that_is_none_is_refused_at_once(index: Any) -> None:
    with pytest.raises(InvalidError, match="index="):
        farcall.FunctionCall.from_id("fc-1").get(index=index)


def test_ids_and_handles_of_the_wrong_type() -> None:
    wrong: Any = 5
    with pytest.raises(InvalidError, match="a str that starts with fc-, not 5"):
        farcall.FunctionCall.from_id(wrong)
    with pytest.raises(InvalidError, match="a str that starts with fu-, not 5"):
        Function.from_id(wrong)
    with pytest.raises(InvalidError, match=r"gather takes the handles that .spawn returned, not 5"):
        farcall.FunctionCall.gather(wrong)
    calls: Any = [farcall.FunctionCall.from_id("fc-1")]
    with pytest.raises(InvalidError, match=r"gather\(\*calls\)"):
        asyncio.run(farcall.FunctionCall.gather.aio(calls))


@pytest.mark.parametrize(
    "wrong",
    [{"max_retries": "a"}, {"max_retries": 1.5}, {"max_retries": 1, "initial_delay": "1"}, {"max_retries": True}],
)
def test_retries_of_the_wrong_type(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match=next(iter(set(wrong) - {"max_retries"}), "max_retries")):
        farcall.Retries(**wrong)
    with pytest.raises(InvalidError, match=r"retries='a' is no whole number.*farcall\.Retries"):
        app.function(retries="a")(lambda: None)  # pyright: ignore
