"""Trees as container roots in every way that machines have: what containers see is the same, and objects stay as they
are."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from other_user import NOBODY, folder_of_nobody, packages_for_all, python_for_nobody

TOUR = Path(__file__).with_name("tree_tour.py")
RESTRICT = Path(__file__).parent.parent / "hosts/restrict.py"

LOOK = """\
. directory 750 7 8 1600000000 4096
a regular file 640 7 8 1600000000 8
b regular file 640 7 8 1600000000 8
c regular file 644 0 0 1600000000 8
d regular file 644 0 0 1600000000 8
empty regular empty file 604 1000 50 1600000000 0
link symbolic link 777 7 7 1600000000 10
set regular file 4755 0 0 1600000000 8
sub directory 1777 0 0 1600000000 4096
/bin/sh 755 0 0
/etc 755 0 0
c and d are one file
content
content
content
"""


def tour(base: Path, program: Path, *command: str, **how: Any) -> dict[str, Any]:
    """What tree_tour.py tells; `command` ends with the Python to run it."""
    done = subprocess.run(
        [*command, str(program), str(base)], **how, cwd="/", capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def here(base: Path, *lacking: str) -> dict[str, Any]:
    command = [sys.executable, str(RESTRICT), "lacks", *lacking, "--"] if lacking else []
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return tour(base, TOUR, *command, sys.executable, env={**os.environ, "PYTHONPATH": path})


def seen(facts: dict[str, Any], what: str) -> list[str]:
    """Without sizes of directories, which are the file system's."""
    lines = facts[what].splitlines()
    return [line.rpartition(" ")[0] if " directory " in line else line for line in lines]


def wanted(*, own_ids_only: bool = False) -> list[str]:
    lines = [line.rpartition(" ")[0] if " directory " in line else line for line in LOOK.splitlines()]
    if own_ids_only:
        for ids in (" 7 8 ", " 1000 50 ", " 7 7 "):
            lines = [line.replace(ids, " 0 0 ") for line in lines]
    return lines


def check(facts: dict[str, Any], **how: bool) -> None:
    assert facts["same"] and facts["untouched"] and facts["left"] == []
    assert seen(facts, "before") == seen(facts, "after") == wanted(**how)
    assert facts["places"] == "/\n/etc\n/root\n/tmp\n/var/tmp\nfrom the image\n"
    changed = ["", "bin", "bin/ls", "bin/sh2", "data", "data/a", "data/b", "data/new"]
    changed += ["data/sub", "data/sub/\ufffd", "data/sub2", "data/sub2/\ufffd"]
    # A copy of the image has the places to mount at, too.
    places = (
        set()
        if facts["mode"][1]
        else {"dev", "etc", "etc/hostname", "etc/hosts", "etc/resolv.conf", *["proc", "run", "sys"]}
    )
    assert set(facts["built"]) - {"bin", "data"} - places == set(changed) - {"", "bin", "data"}
    if facts["mode"][1]:
        check_writing(facts, **how)


def check_writing(facts: dict[str, Any], **how: bool) -> None:
    output, notes = facts["write"]
    # Where there is root and nobody else, packages can be installed all the same.
    owner = "0:0" if how.get("own_ids_only") else "1000:50"
    assert output.split("\n") == ["0", f"given to {owner}", "written", "0", ""]
    assert not [note for note in notes if "cgroup" not in note]


@pytest.mark.root("mounts EROFS")
@pytest.mark.kernel("erofs", "trees are mounted with it")
def test_erofs(tmp_path: Path) -> None:
    facts = here(tmp_path)
    check(facts)
    assert facts["mode"] == ["erofs", True, False]
    assert facts["why"] == ["", ""]


@pytest.mark.root("is about root's containers")
def test_directories_with_mapped_ids(tmp_path: Path) -> None:
    facts = here(tmp_path, "erofs")
    check(facts)
    assert facts["mode"] == ["directory", True, False]
    assert facts["why"] == ["this kernel has no EROFS", "sudo modprobe erofs"]


@pytest.mark.root("is about root's containers")
def test_directories_with_shifted_ids(tmp_path: Path) -> None:
    facts = here(tmp_path, "erofs", "idmap")
    check(facts)
    assert facts["mode"] == ["directory", True, True]
    assert "cannot be idmapped" in facts["why"][0]


@pytest.mark.root("is about root's containers")
def test_without_overlay(tmp_path: Path) -> None:
    """Some places can be written to, the rest is read-only, and builds work on copies."""
    facts = here(tmp_path, "overlay")
    check(facts)
    assert facts["mode"] == ["directory", False, False]
    assert facts["why"] == ["this kernel has no overlay filesystem", "sudo modprobe overlay"]
    output, [note] = facts["write"]
    assert "Read-only file system" in output
    assert "the image is read-only here but for /tmp" in note


@pytest.mark.root("becomes another user")
@pytest.mark.parametrize("subordinate", [False, True], ids=["one id", "subordinate ids"])
def test_an_ordinary_user(open_directory: Path, subordinate: bool) -> None:
    """With a line in /etc/subuid and /etc/subgid files of an image have the owners that they should have."""
    if subordinate and not shutil.which("newuidmap"):
        pytest.skip("needs newuidmap (Debian: uidmap)")
    ranges = open_directory / "ranges"
    ranges.write_text(f"{NOBODY}:500000:65536\n" if subordinate else "")
    as_nobody = f"""
        mount --bind {ranges} /etc/subuid && mount --bind {ranges} /etc/subgid &&
        exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "$@"
    """
    packages = packages_for_all(open_directory)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(packages)}
    command = ["unshare", "--mount", "sh", "-c", as_nobody, "sh", python_for_nobody()]
    facts = tour(folder_of_nobody(open_directory), packages / TOUR.name, *command, env=environment)
    check(facts, own_ids_only=not subordinate)
    assert facts["mode"] == ["directory", True, False]
    assert facts["why"] == ["only the system's own root can mount EROFS", "run the server as root"]
