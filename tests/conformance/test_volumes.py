"""Semantics: volumes. Commit, reload, commits in the background and at the end; the later writer wins."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import volumes_app
from volumes_app import NAME, OTHER, Box, ToldError, volume

import farcall
from farcall import Volume, errors

if TYPE_CHECKING:
    from tests.conftest import Installation

TREE = "result = sorted(os.path.join(d, f) for d, _, fs in os.walk('/vol') for f in fs)"


@pytest.fixture(scope="module", autouse=True)
def runs(connected: "Installation", app_runs: None) -> Iterator[None]:
    for name in (NAME, OTHER):
        Volume.objects.delete(name, allow_missing=True)
    with volumes_app.app.run():
        yield
    for name in (NAME, OTHER):
        Volume.objects.delete(name, allow_missing=True)


@pytest.fixture(autouse=True)
def empty(runs: None) -> None:
    for entry in volume.listdir("/"):
        volume.remove_file(entry.path, recursive=True)


@pytest.fixture
def box(request: pytest.FixtureRequest) -> Callable[[str], Callable[..., Any]]:
    """Containers by name, new ones for each test."""
    return lambda name: Box(name=f"{request.node.name}-{name}").run.remote


Boxes = Callable[[str], Callable[..., Any]]


def put(**files: str) -> None:
    with volume.batch_upload(force=True) as batch:
        for name, text in files.items():
            batch.put_file(io.BytesIO(text.encode()), name)


def text_of(path: str) -> str:
    return b"".join(volume.read_file(path)).decode()


# --- commit and reload


def test_what_is_written_is_seen_by_others_once_it_is_committed(box: Boxes) -> None:
    put(old="old")
    one, two = box("one"), box("two")
    assert two("result = os.listdir('/vol')") == ["old"]
    one("os.makedirs('/vol/a/b'); open('/vol/a/b/new', 'w').write('new'); open('/vol/old', 'a').write('er')")
    assert one("result = open('/vol/a/b/new').read()") == "new"
    assert [entry.path for entry in volume.iterdir("/")] == ["old"]
    assert box("early")("result = os.listdir('/vol')") == ["old"]
    one("volume.commit()")
    assert text_of("/a/b/new") == "new"
    assert text_of("old") == "older"
    assert box("late")(TREE) == ["/vol/a/b/new", "/vol/old"]
    assert two("result = open('/vol/old').read(), os.listdir('/vol')") == ("old", ["old"])
    two("volume.reload()")
    assert two("result = open('/vol/old').read(), open('/vol/a/b/new').read()") == ("older", "new")


def test_all_kinds_of_changes_are_committed_and_reloaded(box: Boxes) -> None:
    put(**{"file": "file", "gone": "gone", "dir/file": "x", "dir/other": "y", "turns/inside": "z"})
    one, two = box("one"), box("two")
    two("pass")
    one(
        """
import shutil
os.unlink('/vol/gone')
shutil.rmtree('/vol/turns'); open('/vol/turns', 'w').write('a file now')
os.unlink('/vol/file'); os.mkdir('/vol/file'); open('/vol/file/in', 'w').write('a directory now')
os.makedirs('/vol/empty/dir'); open('/vol/empty-file', 'w').close()
os.symlink('dir/file', '/vol/link'); os.chmod('/vol/dir/other', 0o750)
try: os.chown('/vol/dir/other', 12, 34)
except OSError: pass  # a user who has one id only
os.rename('/vol/dir/file', '/vol/dir/renamed')
open('/vol/na me\\u00e4\\n', 'w').write('odd')
volume.commit()
"""
    )
    show = """
import stat
result = {}
for folder, folders, files in os.walk('/vol'):
    for name in (*folders, *files):
        path = os.path.join(folder, name)
        status = os.lstat(path)
        what = os.readlink(path) if os.path.islink(path) else open(path).read() if os.path.isfile(path) else None
        result[path] = (oct(status.st_mode), status.st_uid, status.st_gid, what)
"""
    expected = one(show)
    two("volume.reload()")
    assert two(show) == expected == box("three")(show)
    assert expected["/vol/file/in"][3] == "a directory now"
    assert expected["/vol/dir/other"] in (("0o100750", 12, 34, "y"), ("0o100750", 0, 0, "y"))
    assert "/vol/gone" not in expected


def test_a_change_within_the_same_size_and_moment_is_no_less_a_change(box: Boxes) -> None:
    one = box("one")
    for number in range(5):
        one(
            """
with open('/vol/counter', 'w') as file: file.write(str(given)); file.flush(); volume.commit()
stamp = os.stat('/vol/counter')
with open('/vol/counter', 'w') as file: file.write(str(given + 1))
os.utime('/vol/counter', ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
volume.commit()
""",
            number,
        )
        assert text_of("counter") == str(number + 1)


def test_the_later_writer_wins_file_by_file(box: Boxes) -> None:
    put(both="0", first="0", second="0", kept="0")
    one, two = box("one"), box("two")
    one("pass"), two("pass")
    one("for name in ('both', 'first'): open(f'/vol/{name}', 'w').write('one')")
    two("for name in ('both', 'second'): open(f'/vol/{name}', 'w').write('two')\nos.unlink('/vol/kept')")
    one("open('/vol/kept', 'w').write('one'); os.mkdir('/vol/new'); open('/vol/new/1', 'w').write('1')")
    two("os.mkdir('/vol/new'); open('/vol/new/2', 'w').write('2'); volume.commit()")
    one("volume.commit()")
    assert {name: text_of(name) for name in ("both", "first", "second", "kept")} == {
        "both": "one",
        "first": "one",
        "second": "two",
        "kept": "one",
    }
    assert [entry.path for entry in volume.listdir("new")] == ["new/1", "new/2"]
    two("import shutil; shutil.rmtree('/vol/new'); volume.commit()")
    assert [entry.path for entry in volume.listdir("new")] == ["new/1"]  # it had not seen that one


def test_a_reload_leaves_what_is_not_committed_as_it_is_here(box: Boxes) -> None:
    put(mine="0", theirs="0", removed="0")
    one = box("one")
    one("open('/vol/mine', 'w').write('here'); os.unlink('/vol/removed'); open('/vol/fresh', 'w').write('here')")
    put(mine="there", theirs="there", removed="there", fresh="there")
    one("volume.reload()")
    show = "result = {name: open('/vol/' + name).read() for name in sorted(os.listdir('/vol'))}"
    assert one(show) == {"fresh": "here", "mine": "here", "theirs": "there"}
    one("volume.commit()")
    assert one(show) == box("two")(show)


def test_a_reload_with_open_files_names_the_file(box: Boxes) -> None:
    put(open="0")
    one = box("one")
    for code in (
        "file = open('/vol/open')\ntry: volume.reload()\nfinally: file.close()",
        "os.chdir('/vol')\ntry: volume.reload()\nfinally: os.chdir('/')",
        "import mmap\nwith open('/vol/open') as file: m = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "try: volume.reload()\nfinally: m.close()",
        "import subprocess\np = subprocess.Popen(['sleep', '60'], stdin=open('/vol/open'))\n"
        "try: volume.reload()\nfinally: p.kill(); p.wait()",
    ):
        with pytest.raises(errors.VolumeError, match=r"cannot be reloaded while /vol(/open)? is in use") as caught:
            one(code)
        assert isinstance(caught.value, RuntimeError)
    one("volume.reload()")


def test_commit_and_reload_in_an_async_function(request: pytest.FixtureRequest) -> None:
    run = Box(name=request.node.name).run_async.remote
    run("open('/vol/a', 'w').write('a'); await volume.commit.aio()")
    assert text_of("a") == "a"
    put(b="b")
    run("await volume.reload.aio()")
    assert sorted(run("return os.listdir('/vol')")) == ["a", "b"]


# --- commits that nobody asks for


def test_commits_happen_in_the_background() -> None:
    call = volumes_app.committing_by_itself.spawn(
        "import time\nopen('/vol/step', 'w').write('1')\nwhile not os.path.exists('/tmp/x'):\n"
        "    time.sleep(0.05); volume.reload()\n    if os.path.exists('/vol/enough'): break\nresult = 'done'"
    )
    deadline = time.monotonic() + 20
    while not volume.listdir("/"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert text_of("step") == "1"
    put(enough="")
    assert call.get(timeout=20) == "done"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("returned", "open('/vol/returned', 'w').write('x')"),
        ("raised", "open('/vol/raised', 'w').write('x'); raise ToldError('on purpose')"),
        ("exited", "import sys; open('/vol/exited', 'w').write('x'); sys.exit(3)"),
    ],
)
def test_a_container_commits_as_it_ends(name: str, code: str) -> None:
    if name == "returned":
        volumes_app.once.remote(code)
    else:
        with pytest.raises((ToldError, errors.RemoteError)):
            volumes_app.once.remote(code)
    wait_for(name)


def test_a_container_whose_enter_hook_fails_commits() -> None:
    with pytest.raises((ToldError, errors.RemoteError)):
        volumes_app.Failing().never.remote()
    wait_for("from-enter")


def wait_for(path: str) -> None:
    deadline = time.monotonic() + 20
    while path not in [entry.path for entry in volume.listdir("/")]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_container_that_is_killed_leaves_what_was_committed(box: Boxes) -> None:
    with pytest.raises(errors.ContainerCrashedError):
        box("one")("open('/vol/a', 'w').write('1'); volume.commit(); open('/vol/a', 'w').write('2'); os.kill(2, 9)")
    assert text_of("a") == "1"


def test_what_is_killed_again_and_again_goes_on_from_its_last_commit() -> None:
    assert volumes_app.train.remote(12, [3, 7, 7]) == (sum(step * step for step in range(12)), 4)
    assert text_of("state") == f"12 {sum(step * step for step in range(12))} 4"


# --- mounting


def test_a_read_only_mount() -> None:
    put(a="a")
    assert volumes_app.read_only.remote("result = open('/vol/a').read()") == "a"
    with pytest.raises(OSError, match="Read-only file system"):
        volumes_app.read_only.remote("open('/vol/a', 'w')")
    with pytest.raises(errors.VolumeError, match="read-only at /vol"):
        volumes_app.read_only.remote("volume.commit()")
    put(a="b", c="d")
    code = "volume.reload(); result = {name: open('/vol/' + name).read() for name in sorted(os.listdir('/vol'))}"
    assert volumes_app.read_only.remote(code) == {"a": "b", "c": "d"}
    with pytest.raises(OSError, match="Read-only file system"):
        volumes_app.read_only.remote("open('/vol/a', 'w')")


def test_variants_have_volumes_of_their_own() -> None:
    other = Volume.from_name(OTHER, create_if_missing=True)
    with other.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"other"), "which")
    variant = volumes_app.Box.with_options(volumes={"/other": other})
    run = variant(name="variant").run.remote
    assert run("result = os.listdir('/other'), os.path.isdir('/vol')") == (["which"], True)


def test_an_app_that_names_a_missing_volume_does_not_start() -> None:
    app = farcall.App("missing")

    @app.function(volumes={"/data": Volume.from_name("conformance-volme")}, serialized=True)
    def f() -> None: ...

    with (
        pytest.raises(errors.NotFoundError, match=f"f: there is no volume 'conformance-volme'; did you mean {NAME}"),
        app.run(),
    ):
        pass


def test_in_no_container_there_is_nothing_to_commit() -> None:
    for method in (volume.commit, volume.reload):
        with pytest.raises(errors.VolumeError, match="is not mounted here"):
            method()


# --- files from outside


def test_files_are_put_listed_read_copied_and_removed(tmp_path: Path) -> None:
    big = os.urandom(9_000_000)
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/big").write_bytes(big)
    (tmp_path / "d/e/script").write_text("#!")
    (tmp_path / "d/e/script").chmod(0o755)
    (tmp_path / "d/link").symlink_to("e/script")
    os.mkfifo(tmp_path / "d/fifo")
    with volume.batch_upload() as batch:
        batch.put_directory(tmp_path / "d", "/up")
        batch.put_file(io.BytesIO(b"made"), "up/made", mode=0o600)
    shown = [(entry.path, entry.type.name, entry.size) for entry in volume.iterdir("/")]
    assert shown == [
        ("up", "DIRECTORY", 0),
        ("up/big", "FILE", len(big)),
        ("up/e", "DIRECTORY", 0),
        ("up/e/script", "FILE", 2),
        ("up/link", "SYMLINK", 0),
        ("up/made", "FILE", 4),
    ]
    chunks = list(volume.read_file("up/big"))
    assert (len(chunks), b"".join(chunks)) == (2, big)
    assert text_of("up/link") == "#!"
    with pytest.raises(FileExistsError, match="/up/made exists already"), volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"new"), "fresh")
        batch.put_file(io.BytesIO(b"other"), "up/made")
    assert text_of("up/made") == "made"
    assert [entry.path for entry in volume.listdir("/")] == ["up"]
    with pytest.raises(ToldError), volume.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(b"other"), "up/made")
        raise ToldError
    assert text_of("up/made") == "made"
    volume.copy_files(["up/big", "up/made"], "up/e")
    volume.copy_files(["up/e"], "copy", recursive=True)
    assert [entry.path for entry in volume.listdir("copy")] == ["copy/big", "copy/made", "copy/script"]
    with pytest.raises(errors.InvalidError, match="recursive=True"):
        volume.remove_file("up")
    volume.remove_file("up", recursive=True)
    assert [entry.path for entry in volume.listdir("/")] == ["copy"]
    for missing in (lambda: volume.listdir("up"), lambda: text_of("up"), lambda: volume.remove_file("up")):
        with pytest.raises(FileNotFoundError, match=f"volume '{NAME}' has no up"):
            missing()
    result = volumes_app.once.remote("s = os.stat('/vol/copy/script'); result = oct(s.st_mode), s.st_uid, s.st_gid")
    assert result == ("0o100755", 0, 0)


def test_every_method_can_be_awaited() -> None:
    async def use() -> list[str]:
        async with volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"1"), "a")
        assert [chunk async for chunk in volume.read_file.aio("a")] == [b"1"]
        await volume.copy_files.aio(["a"], "b")
        await volume.remove_file.aio("a")
        into = io.BytesIO()
        assert await volume.read_file_into_fileobj.aio("b", into) == 1
        assert (await volume.info.aio()).name == NAME
        assert [entry.path for entry in await volume.listdir.aio("/")] == ["b"]
        return [entry.path async for entry in volume.iterdir.aio("/")]

    assert asyncio.run(use()) == ["b"]


def test_a_handle_works_on_the_other_side() -> None:
    code = "f = given\nwith f.batch_upload() as b: b.put_file('/etc/hostname', 'name')\nresult = f, f.listdir('/')"
    handle, listed = volumes_app.once.remote(code, volume)
    assert (handle.name, [entry.path for entry in listed]) == (NAME, ["name"])
    assert text_of("name").startswith("ta-")


def test_code_in_a_container_uses_its_own_apps_volumes_only() -> None:
    hidden = Volume.from_name("conformance-hidden", create_if_missing=True)
    with hidden.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"secret"), "s")
    try:
        for code in ("given.listdir('/')", "list(given.read_file('s'))"):
            with pytest.raises(errors.PermissionDeniedError, match="its app mounts"):
                volumes_app.once.remote(code, hidden)
        for code in ("volume.objects.delete(volume.name)", "volume.objects.list()"):
            with pytest.raises(errors.PermissionDeniedError, match="cannot manage volumes"):
                volumes_app.once.remote(code)
    finally:
        Volume.objects.delete("conformance-hidden")


def test_volumes_can_be_managed_from_a_program() -> None:
    Volume.objects.create(OTHER, allow_existing=True)
    with pytest.raises(errors.AlreadyExistsError, match=OTHER):
        Volume.objects.create(OTHER)
    with pytest.raises(errors.AlreadyExistsError):
        Volume.rename(OTHER, NAME)
    Volume.rename(OTHER, f"{OTHER}-renamed")
    names = [one.name for one in Volume.objects.list()]
    assert f"{OTHER}-renamed" in names
    assert OTHER not in names
    Volume.objects.delete(f"{OTHER}-renamed")
    with pytest.raises(errors.NotFoundError, match="farcall volume create"):
        Volume.from_name(OTHER).listdir("/")


def test_an_ephemeral_volume_is_there_for_a_block() -> None:
    app = farcall.App("ephemeral-volume")
    with Volume.ephemeral() as made:
        reading = app.function(volumes={"/data": made}, serialized=True)(os.listdir)
        with made.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"x"), "file")
        with app.run():
            assert reading.remote("/data") == ["file"]
        assert made.info().name == made.name
        assert made.name not in [one.name for one in Volume.objects.list()]
    with pytest.raises(errors.NotFoundError):
        made.listdir("/")

    async def use() -> None:
        async with Volume.ephemeral() as other:
            assert await other.listdir.aio("/") == []
        with pytest.raises(errors.NotFoundError):
            await other.listdir.aio("/")

    asyncio.run(use())


def test_an_ephemeral_volume_ends_with_its_program(connected: "Installation", tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import farcall, os, signal\n"
        "with farcall.Volume.ephemeral() as volume:\n"
        "    print(volume.name, len(volume.listdir('/')), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, str(program)]
    done = subprocess.run(command, env=connected.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    name, count = done.stdout.split()
    assert count == "0"
    deadline = time.monotonic() + 30
    with pytest.raises(errors.NotFoundError):
        while True:
            Volume.from_name(name).listdir("/")
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_volume_is_renamed_by_a_task() -> None:
    async def use() -> None:
        await Volume.objects.create.aio(OTHER)
        await Volume.rename.aio(OTHER, f"{OTHER}-renamed")
        await Volume.objects.delete.aio(f"{OTHER}-renamed")

    asyncio.run(use())
