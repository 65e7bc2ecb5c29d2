"""cgroups: the real hierarchies of this machine, and the layouts of others, played by directories."""

import os
from pathlib import Path

import pytest

from farcall.launcher import cgroups
from farcall.launcher.cgroups import Cgroup, Cgroups
from farcall.spec.container import Limits

_ALL = ("cpu", "memory", "pids")


def v2(directory: Path, controllers: str, handed_down: str = "") -> Path:
    """A directory that looks like a v2 cgroup."""
    directory.mkdir(exist_ok=True)
    (directory / "cgroup.controllers").write_text(controllers)
    (directory / "cgroup.subtree_control").write_text(handed_down)
    (directory / "cgroup.procs").touch()
    return directory


def test_v2_climbs_to_where_controllers_are_handed_down(tmp_path: Path) -> None:
    mount = v2(tmp_path / "mount", "cpu memory pids", "cpu memory pids")
    delegated = v2(mount / "user", "cpu memory pids", "cpu memory pids")
    own = v2(delegated / "session", "")
    v2(delegated / "farcall-x", "cpu memory pids")  # the kernel fills a new directory; these do not
    parent, controllers = cgroups._make_v2_parent(mount, own, "farcall-x")
    assert parent == delegated / "farcall-x"
    assert controllers == _ALL


def test_v2_without_controllers_is_none(tmp_path: Path) -> None:
    mount = v2(tmp_path / "mount", "")
    assert cgroups._make_v2_parent(mount, mount, "farcall-x") == (None, ())


def test_a_former_launchers_place_is_remembered(tmp_path: Path) -> None:
    elsewhere = tmp_path / "other-session/farcall-x"
    (elsewhere / "ta-1").mkdir(parents=True)
    foreign = tmp_path / "other-session/somebody"
    (foreign / "theirs").mkdir(parents=True)
    record = tmp_path / "cgroups"
    record.write_text(f"{elsewhere}\n{foreign}\n{tmp_path}/gone/farcall-x\n")
    parents = Cgroups("farcall-x", record)
    assert parents.leftovers() == [str(elsewhere / "ta-1")]
    assert str(elsewhere) in record.read_text()
    (elsewhere / "ta-1").rmdir()
    parents.close()
    assert not elsewhere.exists()
    assert foreign.exists()


def test_v2_files(tmp_path: Path) -> None:
    directory = tmp_path / "ta-1"
    directory.mkdir()
    for file in ("cpu.weight", "cpu.max", "memory.max", "memory.swap.max", "pids.max"):
        (directory / file).touch()
    cgroup = Cgroup({directory: (2, _ALL)})
    cgroup.create(Limits(cpu_request=1.0, cpu_limit=1.5, memory_limit=64, pids=7))
    values = {path.name: path.read_text() for path in directory.iterdir()}
    assert values == {
        "cpu.weight": "39",
        "cpu.max": "150000 100000",
        "memory.max": str(64 << 20),
        "memory.swap.max": "0",
        "pids.max": "7",
    }
    (directory / "memory.peak").write_text("12345\n")
    (directory / "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    assert cgroup.usage() == (12345, 1)


def test_a_file_that_must_be_there_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "ta-1"
    directory.mkdir()
    with pytest.raises(cgroups.CgroupError, match=r"cpu\.shares does not exist"):
        Cgroup({directory: (1, ("cpu",))}).create(Limits())


def test_real_ones(memory_cgroup: None) -> None:
    name = f"farcall-test-{os.getpid()}"
    parents = Cgroups(name)
    cgroup = parents.of("ta-1")
    assert cgroup is not None
    cgroup.create(Limits(cpu_request=0.5, cpu_limit=2, memory_limit=32, pids=5))
    assert set(parents.leftovers()) == set(cgroup.paths)
    assert all(os.path.exists(file) for file in cgroup.procs_files)
    assert cgroup.usage().oom_kills == 0
    assert cgroup.remove()
    assert cgroup.remove()  # what is absent is removed
    parents.close()
    assert not any(os.path.exists(os.path.dirname(path)) for path in cgroup.paths)
