"""`farcall volume`: files go in and out, and nothing is replaced unasked."""

import json
from functools import partial
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.fixture
def volume(on_server: Cli) -> Cli:
    """Runs `farcall volume ARGUMENTS`."""
    return partial(on_server, "volume")


@pytest.fixture
def name(volume: Cli, request: pytest.FixtureRequest) -> str:
    """A volume's, new for each test."""
    made = volume("create", request.node.name)
    assert made.stderr.splitlines() == [
        f"made volume {request.node.name}",
        f'use it: @app.function(volumes={{"/data": farcall.Volume.from_name("{request.node.name}")}})',
    ]
    return request.node.name


def test_files_go_in_and_out(volume: Cli, name: str, tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/a").write_text("aa")
    (tmp_path / "d/e/b").write_text("bbb")
    (tmp_path / "d/link").symlink_to("a")
    assert volume("put", name, "d").returncode == 0
    assert volume("put", name, "d/a", "/x/renamed").returncode == 0
    assert volume("put", name, "-", "typed", stdin="text\n").returncode == 0
    listed = json.loads(volume("ls", name, "-r", "--json").stdout)
    assert [(one["path"], one["type"], one["size"]) for one in listed] == [
        ("d", "directory", 0),
        ("d/a", "file", 2),
        ("d/e", "directory", 0),
        ("d/e/b", "file", 3),
        ("d/link", "symlink", 0),
        ("typed", "file", 5),
        ("x", "directory", 0),
        ("x/renamed", "file", 2),
    ]
    table = volume("ls", name, "d").stdout.splitlines()
    assert [line.split()[-1] for line in table] == ["PATH", "d/a", "d/e/", "d/link"]
    assert volume("get", name, "typed", "-").stdout == "text\n"
    got = volume("get", name, "d", "copy")
    assert got.stderr.splitlines() == ["left out: d/link is a symlink", "2 files, 5 bytes, to copy"]
    assert (tmp_path / "copy/e/b").read_text() == "bbb"
    (tmp_path / "here").mkdir()
    volume("get", name, "/d/e/b", "here")
    assert (tmp_path / "here/b").read_text() == "bbb"
    volume("get", name, "/", "all")
    assert (tmp_path / "all/x/renamed").read_text() == "aa"


def test_nothing_is_replaced_unasked(volume: Cli, name: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    volume("put", name, "a")
    (tmp_path / "a").write_text("two")
    put = volume("put", name, "a")
    assert (put.returncode, put.stderr) == (
        1,
        "farcall: /a exists already; say force=True (--force) to replace it\n",
    )
    get = volume("get", name, "a")
    assert (get.returncode, get.stderr) == (1, "farcall: a is there already; say --force to replace it\n")
    assert (tmp_path / "a").read_text() == "two"
    assert volume("get", "-f", name, "a").returncode == 0
    assert (tmp_path / "a").read_text() == "one"
    (tmp_path / "a").write_text("three")
    volume("put", "--force", name, "a")
    assert volume("get", name, "a", "-").stdout == "three"


def test_copy_and_remove(volume: Cli, name: str) -> None:
    volume("put", name, "-", "d/a", stdin="x")
    assert volume("cp", name, "d/a", "b").returncode == 0
    assert "is a directory: say recursive=True (-r)" in volume("cp", name, "d", "e").stderr
    assert volume("cp", "-r", name, "d", "e").returncode == 0
    assert "is a directory: say recursive=True (-r)" in volume("rm", name, "d").stderr
    assert volume("rm", "-r", name, "d").returncode == 0
    assert [one["path"] for one in json.loads(volume("ls", name, "-r", "--json").stdout)] == ["b", "e", "e/a"]
    for arguments in (("rm", name, "d"), ("ls", name, "d"), ("get", name, "d")):
        missing = volume(*arguments)
        assert (missing.returncode, missing.stdout) == (1, "")
        assert missing.stderr == f"farcall: volume '{name}' has no d; `farcall volume ls {name}` shows what it has\n"
    assert "needs at least two paths" in volume("cp", name, "b").stderr
    assert "is no plain path" in volume("rm", name, "../b").stderr


def test_volumes_are_listed_renamed_and_deleted(volume: Cli, name: str) -> None:
    assert "there is a volume" in volume("create", name).stderr
    assert "cannot name a volume" in volume("create", "a/b").stderr
    volume("rename", name, "renamed")
    listed = {one["name"]: one for one in json.loads(volume("list", "--json").stdout)}
    assert name not in listed
    assert listed["renamed"]["volume_id"].startswith("vo-")
    assert listed["renamed"]["created_at"].endswith("Z")
    assert "renamed " in volume("list").stdout
    asked = volume("delete", "renamed")
    assert (asked.returncode, "say --yes" in asked.stderr) == (2, True)
    assert volume("delete", "-y", "renamed").stderr == "deleted volume renamed\n"
    assert "farcall volume create renamed" in volume("delete", "-y", "renamed").stderr
    assert volume("delete", "-y", "--allow-missing", "renamed").returncode == 0
