"""Containers whose root is a tree, and containers that run a command."""

import ctypes
import mmap
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from image_harness import make_image
from launcher_harness import Rig, Running, eventually

from farcall import mounts
from farcall.content.ingest import ingest_directory
from farcall.content.store import Store
from farcall.launcher import warming
from farcall.spec.container import Bind, MountMode, TreeMount


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image."""
    return make_image(tmp_path_factory.mktemp("images") / "root,with:odd letters")


def start(rig: Rig, image: Path, *command: str, **spec: object) -> Running:
    """A command in the image."""
    spec.setdefault("root", TreeMount("directory", str(image)))
    return rig.wait(rig.start_async("", interpreter=None, command=command, cwd="/", **spec))


def output(rig: Rig, image: Path, script: str, **spec: object) -> str:
    """What a shell script prints in the image; it must succeed."""
    result = start(rig, image, "sh", "-c", script, **spec).result()
    assert result.exited.exit_code == 0, result.output
    return result.output


def test_the_image_is_all_a_command_sees(rig: Rig, image: Path) -> None:
    seen = output(rig, image, "cat /etc/motd; ls /; id; cat /etc/hosts; ls /dev /proc/1/comm")
    assert "from the image" in seen
    assert "uid=0(root)" in seen
    assert "localhost" in seen
    assert "null" in seen and "/proc/1/comm" in seen
    assert "home" not in seen.split()  # what the host has, and the image has not


def test_what_it_writes_lies_over_the_image(rig: Rig, image: Path, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    output(rig, image, "echo new > /root/new; rm /etc/motd; mkdir /opt; chown 1000:50 /opt", upper=str(upper))
    assert (image / "etc/motd").read_text() == "from the image\n"
    assert not (image / "root/new").exists()
    written = upper / "upper"
    assert (written / "root/new").read_text() == "new\n"
    assert (written / "etc/motd").stat().st_rdev == 0  # a whiteout: a character device 0, 0
    outside = (written / "root").stat().st_uid
    assert (written / "opt").stat().st_uid - outside == 1000
    # Another container with the same layer sees it; one without does not.
    assert output(rig, image, "cat /root/new", upper=str(upper)) == "new\n"
    assert start(rig, image, "cat", "/root/new").result().exited.exit_code == 1


def test_directories_of_the_image_can_be_renamed(rig: Rig, image: Path, tmp_path: Path) -> None:
    """As root at no cost; where overlayfs refuses it (EXDEV), mv copies."""
    mine = tmp_path / "mine"
    shutil.copytree(image, mine, symlinks=True)
    (mine / "etc/sub").mkdir()
    (mine / "etc/sub/file").write_text("kept\n")
    assert output(rig, mine, "mv /etc/sub /etc/moved; cat /etc/moved/file; ls -d /etc/sub || true").startswith("kept\n")


def test_it_runs_as_a_user_of_the_image(rig: Rig, image: Path) -> None:
    assert output(rig, image, "id; echo $HOME $USER", user="ada") == (
        "uid=1000(ada) gid=1000(ada) groups=1000(ada),50(music)\n/home/ada ada\n"
    )
    assert output(rig, image, "id", user="1000:50").startswith("uid=1000(ada) gid=50(music)")
    result = start(rig, image, "touch", "/etc/passwd", user="ada").result()
    assert result.exited.exit_code == 1 and "Permission denied" in result.output


def test_a_user_that_the_image_does_not_have(rig: Rig, image: Path) -> None:
    with pytest.raises(Exception, match="there is no user 'nobody' in the image"):
        start(rig, image, "id", user="nobody")


def test_a_command_that_is_not_there(rig: Rig, image: Path) -> None:
    result = start(rig, image, "nonsense", "--flag").result()
    assert result.exited.exit_code == 127
    assert result.output == "nonsense: No such file or directory\n"


def files_in(directory: Path) -> list[str]:
    """All that is below a directory, by relative path."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_what_is_mounted_leaves_no_trace_in_the_layer(rig: Rig, image: Path, tmp_path: Path) -> None:
    """The image lacks /proc, /dev, /run, /sys, /etc/hosts and all other places to mount at."""
    upper, cache, source = tmp_path / "upper", tmp_path / "cache", tmp_path / "source"
    for directory in (upper, cache, source):
        directory.mkdir()
    (source / "file").write_text("from the tree\n")
    seen = output(
        rig,
        image,
        "cat /etc/hostname /srv/code/file /etc/inner/file /proc/self/comm; stat -c '%n %a %u' /tmp /root /sys /etc",
        upper=str(upper),
        container_id="ta-named",
        binds=(Bind(str(cache), "/root/.cache/pip", read_only=False),),
        trees=tuple(TreeMount("directory", str(source), target=target) for target in ("/srv/code", "/etc/inner")),
    )
    assert seen == ("ta-named\nfrom the tree\nfrom the tree\ncat\n/tmp 755 0\n/root 755 0\n/sys 555 0\n/etc 755 0\n")
    assert files_in(upper / "upper") == []


def test_a_directory_of_a_mount_point_keeps_what_it_is(rig: Rig, image: Path, tmp_path: Path) -> None:
    """Places to mount at lie in the image's own directories, which look and are committed as before."""
    mine = tmp_path / "mine"
    shutil.copytree(image, mine, symlinks=True)
    (mine / "etc").chmod(0o2751)
    os.chown(mine / "etc", 7, 8)
    os.utime(mine / "etc", (1000, 1000))
    upper = tmp_path / "upper"
    upper.mkdir()
    assert output(rig, mine, "stat -c '%a %u %g %Y' /etc; ls /etc; echo > /etc/new", upper=str(upper)) == (
        "2751 7 8 1000\ngroup\nhostname\nhosts\nmotd\npasswd\nresolv.conf\n"
    )
    assert files_in(upper / "upper") == ["etc", "etc/new"]
    committed = (upper / "upper/etc").stat()
    assert (committed.st_mode & 0o7777, committed.st_gid - committed.st_uid) == (0o2751, 1)


def test_an_image_with_nothing_but_a_program(rig: Rig, image: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(image, bare, symlinks=True, ignore=shutil.ignore_patterns("etc", "root", "tmp"))
    assert output(
        rig, bare, "pwd; stat -c '%n %a' /tmp /root /proc /dev; id -u; cat /etc/hostname", container_id="ta-x"
    ) == ("/\n/tmp 1777\n/root 700\n/proc 555\n/dev 755\n0\nta-x\n")


def test_the_working_directory_is_made(rig: Rig, image: Path, tmp_path: Path) -> None:
    mine, upper = tmp_path / "mine", tmp_path / "upper"
    shutil.copytree(image, mine, symlinks=True)
    (mine / "current").symlink_to("/srv/releases/1")
    upper.mkdir()
    started = rig.start_async(
        "",
        interpreter=None,
        command=("sh", "-c", "pwd; touch here; id -u"),
        cwd="/current/app",
        root=TreeMount("directory", str(mine)),
        upper=str(upper),
    )
    result = rig.wait(started).result()
    assert result.output == "/srv/releases/1/app\n0\n"
    made = upper / "upper/srv/releases/1/app"
    assert (made / "here").exists()
    assert made.stat().st_uid == (made / "here").stat().st_uid


def test_a_working_directory_that_is_a_file(rig: Rig, image: Path) -> None:
    started = rig.start_async(
        "", interpreter=None, command=("ls",), cwd="/etc/motd/x", root=TreeMount("directory", str(image))
    )
    with pytest.raises(Exception, match="cannot make the working directory /etc/motd/x: File exists"):
        rig.wait(started)


def test_mounts_within_mounts(rig: Rig, image: Path, tmp_path: Path) -> None:
    """Parents come before what is in them, in whatever order the spec has them."""
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    (outer / "data").mkdir(parents=True)
    inner.mkdir()
    (outer / "file").write_text("outer ")
    (inner / "file").write_text("inner ")
    seen = output(
        rig,
        image,
        "cat /code/file /code/data/file",
        binds=(Bind(str(inner), "/code/data"),),
        trees=(TreeMount("directory", str(outer), target="/code"),),
    )
    assert seen == "outer inner "
    with pytest.raises(Exception, match="at /usr: that is a folder in the container, and what is mounted is a file"):
        output(rig, image, "true", container_id="ta-y", binds=(Bind(str(outer / "file"), "/usr"),))
    with pytest.raises(Exception, match="at /file: that is a file in the container, and what is mounted is a folder"):
        binds = (Bind(str(outer / "file"), "/file"), Bind(str(inner), "/file"))
        output(rig, image, "true", container_id="ta-z", binds=binds)


def test_symlinks_of_the_image_lead_nowhere_outside(rig: Rig, image: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    evil = tmp_path / "evil"
    shutil.copytree(image, evil, symlinks=True)
    (evil / "proc").symlink_to(outside)
    (evil / "tmp").rmdir()
    (evil / "tmp").symlink_to("../" * 30 + f"farcall-{os.getpid()}")
    shutil.rmtree(evil / "etc")
    (evil / "etc").symlink_to(tmp_path / "elsewhere")
    (evil / "run").symlink_to("run")
    with pytest.raises(Exception, match="cannot mount at /run"):
        output(rig, evil, "true")
    (evil / "run").unlink()
    assert output(rig, evil, "cat /proc/self/comm; cat /etc/hostname", container_id="ta-y") == "cat\nta-y\n"
    assert os.listdir(outside) == []
    assert not (tmp_path / "elsewhere").exists() and not Path(f"/farcall-{os.getpid()}").exists()


def test_a_resolver_behind_a_symlink(rig: Rig, image: Path, tmp_path: Path) -> None:
    """As on systems with systemd-resolved, whose images are many."""
    mine, upper = tmp_path / "mine", tmp_path / "upper"
    shutil.copytree(image, mine, symlinks=True)
    upper.mkdir()
    (mine / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (mine / "etc/hosts").symlink_to("/nowhere/hosts")
    seen = output(rig, mine, "cat /etc/hosts; ls /run/systemd/resolve", upper=str(upper))
    assert "localhost" in seen and "stub-resolv.conf" in seen
    assert files_in(upper / "upper") == []


def test_trees_are_seen_read_only(rig: Rig, image: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "package").mkdir(parents=True)
    (source / "package/module.py").write_text("x = 1\n")
    trees = (
        TreeMount("directory", str(source), target="/code"),
        TreeMount("directory", str(source), target="/one.py", subpath="package/module.py"),
    )
    seen = output(rig, image, "cat /code/package/module.py /one.py; touch /code/new 2>&1 || true", trees=trees)
    assert seen.startswith("x = 1\nx = 1\n") and "Read-only file system" in seen


def test_a_subpath_that_leads_out_of_its_tree_is_refused(rig: Rig, image: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "passwd").symlink_to("/etc/passwd")
    trees = (TreeMount("directory", str(source), target="/one", subpath="passwd"),)
    with pytest.raises(Exception, match="a symlink is on the way"):
        start(rig, image, "cat", "/one", trees=trees)


def test_binds_beside_an_image(rig: Rig, image: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    binds = (Bind(str(cache), "/cache", read_only=False),)
    output(rig, image, "echo kept > /cache/file", binds=binds)
    assert (cache / "file").read_text() == "kept\n"


def share_in_memory(path: str) -> float:
    """The share of a file's pages that are in memory, by mincore(2), which brings none there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
        states = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        assert libc.mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), states) == 0
        del start
        return sum(state & 1 for state in states) / len(states)


def forget(path: str) -> None:
    """Takes a file out of memory."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def is_forgotten(path: str) -> bool:
    """Whether a file is out of memory, after another `forget`: the kernel takes it for advice."""
    forget(path)
    return share_in_memory(path) == 0


@pytest.mark.root("mounts EROFS")
@pytest.mark.kernel("erofs", "trees are mounted with it")
def test_the_names_of_an_image_are_read_ahead(rig: Rig, image: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    shutil.copytree(image, many, symlinks=True)
    for number in range(8):
        (many / f"folder{number}").mkdir()
        for file in range(500):
            (many / f"folder{number}/file{file}").touch()
    store = Store(tmp_path / "store")
    with store.lease("test") as lease:
        root = mounts.prepare(lease, ingest_directory(lease, many), MountMode("erofs"))
        forget(root.path)
        if share_in_memory(root.path) == 1:
            pytest.skip("the temporary directory is on no disk")

        def read_ahead() -> bool:
            assert output(rig, image, "ls -d /folder* | cat", root=root).count("/folder") == 8
            return share_in_memory(root.path) > 0.5  # a kernel may take back what nobody has used for a second

        eventually(partial(is_forgotten, root.path), "no name is in memory")
        for _ in range(2):  # cold, and in memory
            eventually(read_ahead, "the names are in memory")
        eventually(lambda: warming.begin(root) is None, "nothing is left to read")
    unused = shutil.copy(root.path, str(tmp_path / "unused"))
    copied = TreeMount("erofs", unused, root.objects)
    eventually(lambda: is_forgotten(unused) and warming.begin(copied) == root.objects, "the copy is to be read")
    warming.read_folders(root.objects)
    warming.read_folders(str(tmp_path / "nowhere"))
