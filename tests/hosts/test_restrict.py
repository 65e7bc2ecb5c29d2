"""The restrictions of the host matrix restrict what they say, and nothing else."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

RESTRICT = Path(__file__).with_name("restrict.py")
CALLS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    ctypes.set_errno(0)
    getattr(libc, name)(*arguments)
    print(ctypes.get_errno())
def mount(filesystem, target, data=None):
    call("mount", b"none", target.encode(), filesystem, 0, data)
"""


def run(kind: list[str], code: str) -> list[str]:
    """What `code` prints under the restriction, line by line."""
    command = [sys.executable, str(RESTRICT), *kind, "--", sys.executable, "-c", CALLS + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_namespaces_are_refused_and_processes_are_not() -> None:
    code = """
call("unshare", 0x10000000)
call("unshare", 0x20000)
call("setns", 0, 0)
mount(b"tmpfs", "/mnt")
libc.syscall.restype = ctypes.c_long
call("syscall", 435, None, 0)
call("syscall", 56 if os.uname().machine == "x86_64" else 220, 0x10000000 | 17, 0, 0, 0, 0)
import subprocess, threading
thread = threading.Thread(target=lambda: print("thread"))
thread.start()
thread.join()
print(subprocess.run(["true"]).returncode)
"""
    refused = str(errno.EPERM)
    assert run(["refuse-namespaces"], code) == [*[refused] * 4, str(errno.ENOSYS), refused, "thread", "0"]


def test_overlay_is_unknown_and_other_filesystems_mount(tmp_path: Path) -> None:
    code = f"""
uid, gid = os.geteuid(), os.getegid()
call("unshare", 0x10020000 if uid else 0x20000)
mount(b"overlay", "{tmp_path}", b"lowerdir=/usr:/etc")
mount(b"tmpfs", "{tmp_path}")
call("syscall", 430, b"overlay", 0)
"""
    answers = run(["lacks", "overlay"], code)
    assert answers == ["0", str(errno.ENODEV), "0", str(errno.ENODEV)]


@pytest.mark.root("to map ids")
def test_ids_cannot_be_mapped() -> None:
    code = """
import struct
call("syscall", 442, -100, b"/", 0, struct.pack("<QQQQ", 0x100000, 0, 0, 0), 32)
call("syscall", 442, -100, b"/", 0, struct.pack("<QQQQ", 0, 0, 0, 0), 32)
"""
    assert run(["lacks", "erofs", "idmap"], code) == [str(errno.EINVAL), "0"]


def test_lacking_something_passes_on_the_exit_code() -> None:
    command = [sys.executable, str(RESTRICT), "lacks", "overlay", "--", "sh", "-c", "exit 7"]
    assert subprocess.run(command, timeout=30).returncode == 7


def test_cgroups_are_read_only() -> None:
    code = """
for line in open("/proc/self/mountinfo"):
    before, _, after = line.partition(" - ")
    if after.split()[0] in ("cgroup", "cgroup2"):
        print(bool(os.statvfs(before.split()[4]).f_flag & os.ST_RDONLY))
"""
    assert set(run(["no-cgroup"], code)) <= {"True"}


def test_proc_is_read_only() -> None:
    code = """
try:
    open("/proc/self/oom_score_adj", "w").write("1")
except OSError as error:
    print(error.errno)
"""
    assert run(["readonly-proc"], code) == [str(errno.EROFS)]


def test_home_is_another_filesystem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = f"print(os.path.ismount('{tmp_path}'), os.listdir('{tmp_path}'))"
    assert run(["home-mount", str(tmp_path)], code) == ["True", "[]"]
    assert not os.path.ismount(tmp_path)


@pytest.mark.root("to become another user")
def test_a_user_is_in_no_other_group() -> None:
    command = [sys.executable, str(RESTRICT), "user", "61234", "--", "id"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["uid=61234", "gid=61234", "groups=61234"]
