"""A small image for tests: a directory with a handful of programs and the libraries that they load.

No pytest in here: other users' Pythons run it, too.
"""

import re
import shutil
import subprocess
from pathlib import Path

PROGRAMS = ("sh", "cat", "ls", "mv", "id", "rm", "mkdir", "chown", "chmod", "touch", "env", "stat", "mount", "ln", "cp")


def make_image(root: Path) -> Path:
    """Makes the image, without /proc, /dev, /run, /sys and /var."""
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
