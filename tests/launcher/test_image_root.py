"""Containers whose root is a tree, and containers that run a command."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from launcher_harness import Rig, Running

from farcall.spec.container import Bind, TreeMount

PROGRAMS = ("sh", "cat", "ls", "id", "rm", "mkdir", "chown", "touch", "env", "stat", "mount")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a handful of programs and the libraries that they load."""
    root = tmp_path_factory.mktemp("images") / "root,with:odd letters"
    for name in ("bin", "etc", "root", "tmp", "usr"):
        (root / name).mkdir(parents=True)
    root.chmod(0o755)
    needed: set[str] = set()
    for program in PROGRAMS:
        found = shutil.which(program)
        assert found is not None
        shutil.copy(found, root / "bin" / program)
        listed = subprocess.run(["ldd", found], capture_output=True, text=True, check=True).stdout
        needed.update(re.findall(r"(/\S+)", listed))
    for library in needed:
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nada:x:1000:\nmusic:x:50:ada\n")
    (root / "etc/motd").write_text("from the image\n")
    return root


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


def test_symlinks_of_the_image_lead_nowhere_outside(rig: Rig, image: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    evil = tmp_path / "evil"
    shutil.copytree(image, evil, symlinks=True)
    (evil / "proc").symlink_to(outside)
    shutil.rmtree(evil / "etc")
    (evil / "etc").symlink_to(tmp_path / "elsewhere")
    output(rig, evil, "cat /proc/self/comm; cat /etc/hosts")
    assert os.listdir(outside) == []
    assert not (tmp_path / "elsewhere").exists()


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
