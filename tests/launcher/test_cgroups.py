"""cgroups: the real hierarchies of this machine, and the layouts of others, played by directories."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from farcall.launcher import cgroups, init, syscalls
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
    assert sorted([*cgroup.v1, *([cgroup.v2] if cgroup.v2 else [])]) == sorted(cgroup.paths)
    assert cgroup.usage().oom_kills == 0
    assert cgroup.remove()
    assert cgroup.remove()  # what is absent is removed
    parents.close()
    assert not any(os.path.exists(os.path.dirname(path)) for path in cgroup.paths)


def test_a_process_joins_the_real_ones_by_itself(memory_cgroup: None) -> None:
    parents = Cgroups(f"farcall-test-{os.getpid()}")
    cgroup = parents.of("ta-1")
    assert cgroup is not None
    cgroup.create(Limits())
    pid = os.fork()
    if pid == 0:
        init.join_cgroups(init.open_cgroups(cgroup.v1, cgroup.v2))
        os._exit(0 if all(cgroups.members(path) == [os.getpid()] for path in cgroup.paths) else 1)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert cgroup.remove()
    parents.close()


@pytest.fixture
def v2_cgroup() -> Iterator[Path]:
    """An empty cgroup in the real v2 hierarchy, below this process's own."""
    mount = next((m for m, held in cgroups._cgroup_mounts().items() if "cgroup2" in held), None)
    own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"), None)
    if mount is None or own is None or not os.access(mount / own.lstrip("/") / "cgroup.procs", os.W_OK):
        pytest.skip("no writable v2 cgroup here")
    directory = mount / own.lstrip("/") / f"farcall-test-{os.getpid()}"
    directory.mkdir()
    yield directory
    directory.rmdir()


def test_a_process_is_born_in_a_v2_cgroup(v2_cgroup: Path) -> None:
    directory = os.open(v2_cgroup, os.O_PATH | os.O_DIRECTORY)
    pid = syscalls.fork_into_cgroup(directory)
    if pid == 0:
        # It can do what a child of os.fork can: also fork, and have its children in the same place.
        child = os.fork()
        if child == 0:
            os._exit(7)
        _, status = os.waitpid(child, 0)
        inside = cgroups.members(str(v2_cgroup)) == [os.getpid()]
        os._exit(os.waitstatus_to_exitcode(status) if inside else 1)
    os.close(directory)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_process_joins_a_v2_cgroup_by_itself(v2_cgroup: Path) -> None:
    pid = os.fork()
    if pid == 0:
        init.join_cgroups(init.open_cgroups([], str(v2_cgroup)))
        os._exit(0 if cgroups.members(str(v2_cgroup)) == [os.getpid()] else 1)
    assert os.waitpid(pid, 0) == (pid, 0)


def test_a_cgroup_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "tasks").touch()
    files = init.open_cgroups([str(tmp_path)], None)
    file, fd = files.popitem()
    os.close(fd)
    with open(file) as read_only, pytest.raises(OSError, match=f"{file}'"):
        init.join_cgroups({file: os.dup(read_only.fileno())})


def test_where_none_can_be_born_in_a_cgroup_an_error_says_so(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    with pytest.raises(OSError, match="clone3 into a cgroup"):
        syscalls.fork_into_cgroup(directory)
    os.close(directory)
