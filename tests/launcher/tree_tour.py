"""Makes a tree of many kinds of files, mounts it as a root, and prints what containers see and do there."""

import hashlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from image_harness import make_image
from launcher_harness import Rig, make_runner, this_interpreter

from farcall.content.ingest import ingest_directory
from farcall.content.store import Store
from farcall.content.tree import Diff, Entry
from farcall.content.upper import ingest_upper
from farcall.launcher import namespaces

base = Path(sys.argv[1])
rig = Rig(base / "state", this_interpreter(make_runner(base / "runner")))
store = Store(base / "store,with:odd letters")
FILE, TIME = 0o100000, 1_600_000_000_000_000_000


def objects() -> dict[str, tuple[bool, int, int, int]]:
    found: dict[str, tuple[bool, int, int, int]] = {}
    for path in store.objects.glob("*/*"):
        status = path.stat()
        is_right = hashlib.sha256(path.read_bytes()).hexdigest() == path.parent.name + path.name
        found[path.name] = is_right, status.st_mode, status.st_uid, status.st_mtime_ns
    return found


def commit(upper: Path) -> list[str]:
    """What a build finds of a step, by a process that is where the launcher is."""
    ours, theirs = os.pipe()
    if os.fork() == 0:
        try:
            namespaces.join(rig.client.launcher_pid)
            uids, gids = namespaces.id_maps()
            with store.join_lease(lease.id) as joined:
                built = ingest_upper(joined, upper / "upper", store.tree(tree), uid_map=uids, gid_map=gids)
            difference = {entry.path.decode(errors="replace") for entry in {*built} ^ {*store.tree(tree)}}
            os.write(theirs, json.dumps(sorted(difference)).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        return json.loads(stream.read())


LOOK = """
cd /data
stat -c '%n %F %a %u %g %Y %s' . *
stat -c '%n %a %u %g' /bin/sh /etc
[ a -ef b ] && echo a and b are one file
[ c -ef d ] && echo c and d are one file
cat a b empty sub/*
"""
WRITE = """
id -u
cd /data
chown 1000:50 c 2> /tmp/refused && stat -c 'given to %u:%g' c
echo more >> a && chmod 777 b && rm /bin/ls && mv /etc/motd /etc/m2 && ln d sub/e && echo written
cat a | cat >> /data/empty; chmod u+s sub && touch -d @5 a
: > b; echo changed > /bin/cat; echo $?
"""
PLACES = """
for place in / /etc /root /tmp /var/tmp; do [ -d $place ] || mkdir -p $place; echo > $place/new && echo $place; done
echo >> /etc/passwd && cat /etc/motd
"""
STEP = "cd /data && rm a && mv sub sub2 && chmod 600 b && echo new > new && rm /bin/ls && cat /bin/sh > /bin/sh2"
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

    def run(script: str, **more: Any) -> tuple[str, list[str]]:
        spec = {"interpreter": None, "command": ("sh", "-c", script), "cwd": "/", "root": made.mount, **more}
        result = rig.wait(rig.start_async("", **spec)).result()
        return result.output, result.started.notes

    upper = lease.scratch / "kept"
    upper.mkdir()
    run(STEP, upper=str(upper))
    mode = made.mode
    facts = {
        "built": commit(upper),
        "mode": [mode.kind, mode.overlay, mode.is_shifted],
        "why": [mode.why, mode.remedy],
        "same": made.mount == again.mount,
        "before": run(LOOK)[0],
        "write": run(WRITE),
        "after": run(LOOK)[0],
        "places": run(PLACES)[0],
        "untouched": before.items() <= objects().items() and all(whole for whole, *_ in before.values()),
        "left": [
            path.name
            for path in (*(base / "state/containers").iterdir(), *lease.scratch.iterdir())
            if path.name.startswith(("trial-", "farm-"))
        ],
    }
rig.close()
print(json.dumps(facts))
