"""A folder with a Python, a shell and what they load: a base for images that needs no network. `base.py PYTHON DIR`.

Needs only a Python and glibc's ldd.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("sh", "cat")
# Parts of glibc that what is built elsewhere may ask for (manylinux), although they are empty by now.
GLIBC = ("libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1", "libutil.so.1")
SHOW = """
import json, os, sys, sysconfig
paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
print(json.dumps([os.path.realpath(sys._base_executable), sorted(paths)]))
"""
LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "site-packages", "dist-packages", "test", "idlelib", "turtledemo", "tkinter", "config-*", "*.a"
)


def make(python: str | Path, root: Path) -> str:
    """Makes the folder. Returns the path in it of the folder that the Python is in, as python3."""
    shown = subprocess.run([python, "-c", SHOW], check=True, capture_output=True, text=True)
    executable, libraries = json.loads(shown.stdout)
    for name in ("etc", "opt", "root", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    for library in libraries:
        shutil.copytree(library, within(root, library), ignore=LEFT_OUT, symlinks=True, dirs_exist_ok=True)
    for program in PROGRAMS:
        found = shutil.which(program)
        assert found is not None, program
        copy(found, root / "bin" / program)
    copy(executable, within(root, executable))
    folder = os.path.dirname(executable)
    if not (link := within(root, folder) / "python3").exists():
        link.symlink_to(os.path.basename(executable))
    loading = [root / "bin" / program for program in PROGRAMS] + [within(root, executable), *root.rglob("*.so")]
    for path in loading:
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        libraries = re.findall(r"(/\S+)", listed)
        for libc in [library for library in libraries if library.endswith("/libc.so.6")]:
            libraries += [path for name in GLIBC if os.path.exists(path := f"{os.path.dirname(libc)}/{name}")]
        for library in libraries:
            if not library.startswith(str(root)) and not within(root, library).exists():
                copy(library, within(root, library))
    return folder


def within(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def copy(source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


if __name__ == "__main__":
    print(make(sys.argv[1], Path(sys.argv[2])))
