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

RESTRICT = Path(__file__).parent.parent / "hosts/restrict.py"

# Makes a tree of many kinds of files, mounts it as a root, and prints what a container sees and does.
_SCRIPT = r"""
import hashlib, json, os, sys
from pathlib import Path
from image_harness import make_image
from launcher_harness import Rig, make_runner, this_interpreter
from farcall.content.ingest import ingest_directory
from farcall.content.store import Store
from farcall.content.tree import Diff, Entry

base = Path(sys.argv[1])
rig = Rig(base / "state", this_interpreter(make_runner(base / "runner")))
store = Store(base / "store,with:odd letters")
FILE, TIME = 0o100000, 1_600_000_000_000_000_000

def objects():
    found = {}
    for path in store.objects.glob("*/*"):
        status = path.stat()
        is_right = hashlib.sha256(path.read_bytes()).hexdigest() == path.parent.name + path.name
        found[path.name] = is_right, status.st_mode, status.st_uid, status.st_mtime_ns
    return found

LOOK = '''
cd /data
stat -c '%n %F %a %u %g %Y %s' . *
stat -c '%n %a %u %g' /bin/sh /etc
[ a -ef b ] && echo a and b are one file
[ c -ef d ] && echo c and d are one file
cat a b empty sub/*
'''
WRITE = '''
id -u
cd /data
chown 1000:50 c 2> /tmp/refused && echo given away
echo more >> a && chmod 777 b && rm /bin/ls && mv /etc/motd /etc/m2 && ln d sub/e && echo written
cat a | cat >> /data/empty; chmod u+s sub && touch -d @5 a
: > b; echo changed > /bin/cat; echo $?
'''
with store.lease("test") as lease:
    image = store.tree(ingest_directory(lease, make_image(base / "image")))
    one = lease.add_bytes(b"content\n")
    entries = [
        Entry(b"data", 0o40750, 7, 8, TIME),
        Entry(b"data/a", FILE | 0o640, 7, 8, TIME, 8, one),
        Entry(b"data/b", FILE | 0o640, 7, 8, TIME, 8, one),
        Entry(b"data/c", FILE | 0o644, 0, 0, TIME, 8, one, link=1),
        Entry(b"data/d", FILE | 0o644, 0, 0, TIME, 8, one, link=1),
        Entry(b"data/empty", FILE | 0o604, 1000, 50, TIME),
        Entry(b"data/link", 0o120777, 7, 7, TIME, target=b"/somewhere"),
        Entry(b"data/set", FILE | 0o4755, 0, 0, TIME, 8, one),
        Entry(b"data/sub", 0o41777, 0, 0, TIME),
        Entry(b"data/sub/\xff", FILE | 0o444, 0, 0, TIME, 8, one),
    ]
    tree = lease.add_tree(image.merge(Diff(entries)))
    before = objects()
    made = rig.wait(rig.client.prepare_tree(str(store.root), lease.id, tree))
    again = rig.wait(rig.client.prepare_tree(str(store.root), lease.id, tree))

    def run(script):
        spec = {"interpreter": None, "command": ("sh", "-c", script), "cwd": "/", "root": made.mount}
        result = rig.wait(rig.start_async("", **spec)).result()
        return result.output, result.started.notes

    mode = made.mode
    facts = {
        "mode": [mode.kind, mode.overlay, mode.is_shifted],
        "why": [mode.why, mode.remedy],
        "same": made.mount == again.mount,
        "before": run(LOOK)[0],
        "write": run(WRITE),
        "after": run(LOOK)[0],
        "untouched": objects() == before and all(whole for whole, *_ in before.values()),
        "left": [path.name for path in (*(base / "state/containers").iterdir(), *lease.scratch.iterdir())
                 if path.name.startswith(("trial-", "farm-"))],
    }
rig.close()
print(json.dumps(facts))
"""

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


def tour(base: Path, *command: str, **how: Any) -> dict[str, Any]:
    """What the script tells when `command` runs its Python."""
    done = subprocess.run(
        [*command, "-c", _SCRIPT, str(base)], **how, cwd="/", capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def here(base: Path, *lacking: str) -> dict[str, Any]:
    command = [sys.executable, str(RESTRICT), "lacks", *lacking, "--"] if lacking else []
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return tour(base, *command, sys.executable, env={**os.environ, "PYTHONPATH": path})


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
    output, notes = facts["write"]
    assert output.split("\n") == ["0", *([] if how.get("own_ids_only") else ["given away"]), "written", "0", ""]
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
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(packages_for_all(open_directory))}
    command = ["unshare", "--mount", "sh", "-c", as_nobody, "sh", python_for_nobody()]
    facts = tour(folder_of_nobody(open_directory), *command, env=environment)
    check(facts, own_ids_only=not subordinate)
    assert facts["mode"] == ["directory", True, False]
    assert facts["why"] == ["only the system's own root can mount EROFS", "run the server as root"]
