"""Fills a store on an ext4 file system of its own, takes its power away, and looks at what is left. Several times.

Arguments: a directory, a seed. In a mount namespace of its own, as root. The power cut is ext4's own, for tests: it
drops everything that has not been written to the disk, its journal included (EXT4_IOC_SHUTDOWN, NOLOGFLUSH).
"""

import fcntl
import os
import random
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from farcall.content import Store, Tree, durability
from farcall.content import store as store_module
from farcall.content.verify import verify
from farcall.errors import FarcallError

sys.path.insert(0, os.path.dirname(__file__))
from gc_worker import entry

SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2  # _IOR('X', 125, __u32) and its flag


def fill(store: Store, rng: random.Random, done: threading.Event) -> None:
    """Add until the power goes."""
    number = 0
    try:
        with store.lease("fill") as lease:
            while not done.is_set():
                contents = [rng.randbytes(rng.choice([10, 5000, 300_000])) for _ in range(5)]
                for content in contents:
                    lease.add_bytes(content)
                tree = Tree.of([entry(str(place), content) for place, content in enumerate(contents)])
                store.put_record("images", f"im-{rng.randrange(2**40)}", trees=[lease.add_tree(tree)])
                number += 1
    except (FarcallError, OSError):
        if not done.is_set():
            raise


def main() -> None:
    work, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    image, mount = work / "image", work / "mount"
    mount.mkdir()
    with image.open("wb") as stream:
        stream.truncate(400 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    lost = kept = 0
    synced: dict[str, str] = {}  # records that must be there, with their trees
    for turn in range(3):
        made = subprocess.run(["mount", "-o", "loop,commit=1", image, mount], capture_output=True, text=True)
        if made.returncode:
            sys.exit("no loop devices: " + made.stderr)
        boot = f"boot {turn}"
        durability.boot_id = store_module.boot_id = lambda boot=boot: boot
        store = Store(mount / "store")
        found = {record.key: record.trees[0] for record in store.records()}
        assert synced.items() <= found.items(), "what was synced has survived"
        result = verify(store)
        assert result.damaged == [], result.damaged
        kept = len(found)
        done = threading.Event()
        thread = threading.Thread(target=fill, args=(store, random.Random(rng.random()), done))
        thread.start()
        time.sleep(rng.uniform(0.2, 1.0))
        if turn % 2:
            synced = {record.key: record.trees[0] for record in store.records()}
            store.sync()
            time.sleep(rng.uniform(0.0, 0.8))
        done.set()
        fd = os.open(mount, os.O_RDONLY)
        fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        os.close(fd)
        thread.join()
        lost += 1
        subprocess.run(["umount", mount], check=True)
    print(f"{lost} power cuts, {kept} records at the last look")
    print("held")


if __name__ == "__main__":
    main()
