import ast
import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import farcall.interpreters
from farcall.errors import InvalidError, ResourceExhaustedError
from farcall.interpreters import details, private
from farcall.interpreters.private import runner_path

MakeVenv = Callable[[str], Path]
PACKAGE = Path(farcall.interpreters.__file__).parents[1]


def run_in(executable: str | Path, runner: Path, program: str, folder: Path) -> str:
    """Run `program` as a file, after farcall has settled in from `runner`; returns what it prints."""
    file = folder / "program.py"
    prologue = (
        "if __name__ == '__main__':\n"
        f"    import sys; sys.path.insert(0, {str(runner)!r}); from farcall import _private\n"
        f"    sys.path.remove({str(runner)!r}); _private.install()\n"
    )
    file.write_text(prologue + textwrap.dedent(program))
    done = subprocess.run([executable, file], capture_output=True, text=True, cwd=folder, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_made_once_then_found(make_venv: MakeVenv) -> None:
    found = details(str(make_venv("env") / "bin" / "python"))
    first = runner_path(found)
    inode = first.stat().st_ino
    assert runner_path(found) == first
    assert first.stat().st_ino == inode
    assert sorted(path.name for path in first.iterdir()) == ["cloudpickle", "farcall", "msgspec", "path"]


def test_nothing_of_ours_is_visible_to_user_code(tmp_path: Path, make_venv: MakeVenv) -> None:
    python = make_venv("env") / "bin" / "python"
    printed = run_in(
        python,
        runner_path(details(str(python))),
        """
        import importlib.util, json, sys
        import farcall.spec.container as container
        spec = container.Interpreter(executable="e", version="v", tag="t", paths=(), runner_path="r")
        found = {name: importlib.util.find_spec(name) is not None for name in ("msgspec", "cloudpickle", "uvloop")}
        try:
            import msgspec
        except ModuleNotFoundError:
            found["error"] = True
        modules = [name for name in sys.modules if name.startswith(("msgspec", "cloudpickle"))]
        print(json.dumps([found, modules, spec.tag]))
        """,
        tmp_path,
    )
    found, modules, tag = json.loads(printed)
    assert found == {"msgspec": False, "cloudpickle": False, "uvloop": False, "error": True}
    assert modules == []
    assert tag == "t"


def test_the_users_own_msgspec_and_ours_live_side_by_side(tmp_path: Path, make_venv: MakeVenv) -> None:
    """The user's is another copy of the same C extension, which has static types."""
    import msgspec

    folder = make_venv("env")
    site = folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    import shutil

    shutil.copytree(Path(msgspec.__file__).parent, site / "msgspec")
    printed = run_in(
        folder / "bin" / "python",
        runner_path(details(str(folder / "bin" / "python"))),
        """
        import msgspec, pickle, sys
        from farcall import _private
        class Point(msgspec.Struct):
            x: int
        assert msgspec.__file__.startswith(sys.prefix), msgspec.__file__
        assert _private.msgspec is not msgspec and sys.modules["msgspec"] is msgspec
        from farcall.spec.container import Limits  # imported after the user's
        assert isinstance(Limits(), _private.msgspec.Struct) and not isinstance(Limits(), msgspec.Struct)
        for _ in range(1000):
            ours = _private.msgspec.msgpack.encode(Limits())
            assert _private.msgspec.msgpack.decode(ours, type=Limits) == Limits()
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(Point(3)), type=Point) == Point(3)
        assert pickle.loads(pickle.dumps(Point(4))) == Point(4)
        print("both")
        """,
        tmp_path,
    )
    assert printed == "both\n"


def test_functions_pickled_here_are_rebuilt_without_cloudpickle(tmp_path: Path, make_venv: MakeVenv) -> None:
    import io

    from farcall import _cloudpickle

    offset = 40
    buffer = io.BytesIO()
    _cloudpickle.CloudPickler(buffer).dump(lambda x: x + offset)  # pyright: ignore
    (tmp_path / "value").write_bytes(buffer.getvalue())
    assert b"farcall._cloudpickle" in buffer.getvalue()
    python = make_venv("env") / "bin" / "python"
    printed = run_in(
        python,
        runner_path(details(str(python))),
        """
        import io, pickle, sys
        f = pickle.load(open("value", "rb"))
        from farcall import _cloudpickle
        out = io.BytesIO()
        _cloudpickle.CloudPickler(out).dump(lambda: f(2))
        print(pickle.loads(out.getvalue())(), "cloudpickle" in sys.modules)
        """,
        tmp_path,
    )
    assert printed == "42 False\n"


def test_spawned_children_can_import_farcall_and_nothing_else_of_ours(tmp_path: Path, make_venv: MakeVenv) -> None:
    python = make_venv("env") / "bin" / "python"
    (tmp_path / "child.py").write_text(
        textwrap.dedent(
            """
            import importlib.util
            def work(x):
                import farcall.spec.container
                return x + 1, importlib.util.find_spec("msgspec") is None
            """
        )
    )
    printed = run_in(
        python,
        runner_path(details(str(python))),
        """
        if __name__ == "__main__":
            import concurrent.futures, multiprocessing, child
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                print(list(pool.map(child.work, [1])))
        """,
        tmp_path,
    )
    assert printed == "[(2, True)]\n"


def test_another_version_of_python_gets_its_own(tmp_path: Path, other_python: str) -> None:
    found = details(other_python)
    try:
        runner = runner_path(found)
    except InvalidError as error:
        assert "-m pip install 'msgspec" in str(error)
        pytest.skip("msgspec cannot be fetched here")
    printed = run_in(
        other_python,
        runner,
        "from farcall.spec.container import Limits\nfrom farcall import _private\n"
        "print(_private.msgspec.msgpack.decode(_private.msgspec.msgpack.encode(Limits()), type=Limits).pids)\n",
        tmp_path,
    )
    assert printed == "4096\n"


def test_when_msgspec_cannot_be_had_the_error_has_the_one_line(
    other_python: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    found = details(other_python)
    if private._installed_msgspec(found):  # pyright: ignore[reportPrivateUsage]
        pytest.skip("the other Python has msgspec")
    with pytest.raises(InvalidError, match="-m pip install 'msgspec>="):
        runner_path(found)


def test_an_edit_makes_a_new_one_and_compiles_only_what_changed(
    tmp_path: Path, make_venv: MakeVenv, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    copy = tmp_path / "source" / "farcall"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    python = str(make_venv("env") / "bin" / "python")
    program = (
        "import sys; from farcall.interpreters import details; from farcall.interpreters.private import runner_path; "
        "print(runner_path(details(sys.argv[1])))"
    )
    import msgspec

    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(copy.parent), str(Path(msgspec.__file__).parents[1])])}

    def make() -> Path:
        done = subprocess.run([sys.executable, "-c", program, python], env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    before = make()
    assert make() == before
    edited = copy / "errors.py"
    edited.write_text(edited.read_text() + "\nEDITED = True\n")
    after = make()
    assert after != before
    assert "EDITED" in (after / "farcall" / "errors.py").read_text()
    compiled = f"__pycache__/version.cpython-3{sys.version_info.minor}.pyc"
    assert (after / "farcall" / compiled).samefile(before / "farcall" / compiled)
    assert "EDITED" not in (before / "farcall" / "errors.py").read_text()


def test_everything_is_compiled_and_readable_by_others(make_venv: MakeVenv) -> None:
    old = os.umask(0o077)
    try:
        runner = runner_path(details(str(make_venv("env") / "bin" / "python")))
    finally:
        os.umask(old)
    for path in runner.rglob("*"):
        assert path.stat().st_mode & 0o004, path
        if path.suffix == ".py":
            assert list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc")), path


def _make(python: str, out: Any) -> None:
    out.put(str(runner_path(details(python))))


def test_several_processes_at_once_make_one(make_venv: MakeVenv, tmp_path: Path) -> None:
    python = str(make_venv("env") / "bin" / "python")
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    workers = [context.Process(target=_make, args=(python, out)) for _ in range(4)]
    for worker in workers:
        worker.start()
    places = {out.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(60)
    assert len(places) == 1
    assert not list((tmp_path / "xdg" / "data" / "farcall" / "runner").glob(".building-*"))


def test_old_ones_are_swept_and_used_ones_are_kept(tmp_path: Path, make_venv: MakeVenv) -> None:
    root = tmp_path / "xdg" / "data" / "farcall" / "runner"
    old, fresh, cut_short = root / "0.0.1-old" / "cp311-x", root / "0.0.1-new" / "cp311-x", root / ".building-x"
    for folder in (old, fresh, cut_short):
        folder.mkdir(parents=True)
    for folder in (old, cut_short):
        os.utime(folder, (0, 0))
    runner_path(details(str(make_venv("env") / "bin" / "python")))
    assert not old.exists()
    assert not cut_short.exists()
    assert fresh.exists()


@pytest.mark.root("mounts a small filesystem")
def test_a_full_disk_is_named_and_nothing_half_made_stays(tmp_path: Path, make_venv: MakeVenv) -> None:
    found = details(str(make_venv("env") / "bin" / "python"))
    data = tmp_path / "xdg" / "data"
    data.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(data)], check=True)
    try:
        with pytest.raises(ResourceExhaustedError, match=r"No space left on device.*XDG_DATA_HOME"):
            runner_path(found)
        assert not list((data / "farcall" / "runner").glob("*/cp*"))
        assert not list((data / "farcall" / "runner").glob(".building-*"))
    finally:
        subprocess.run(["umount", str(data)], check=True)


def test_our_source_imports_msgspec_in_the_one_form_that_is_rewritten() -> None:
    """A runner directory's farcall must reach msgspec through `farcall._private`, never through `sys.modules`."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.name in private._OWN_IMPORTS:  # pyright: ignore[reportPrivateUsage]
            continue
        rewritten = private._MSGSPEC_IMPORT.sub(rb"\1from farcall._private import msgspec", file.read_bytes())  # pyright: ignore
        for node in ast.walk(ast.parse(rewritten)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] not in ("msgspec", "cloudpickle"), (
                    f"{file}:{node.lineno}: write `import msgspec`, or `from farcall import _cloudpickle`"  # pyright: ignore
                )
