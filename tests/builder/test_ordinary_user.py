"""Builds of an ordinary user, whose containers are made from within a user namespace."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import short_directory

NOBODY = 65534
# In a mount namespace of its own: the user's lines in /etc/subuid, and whether networks can be made for containers.
AS_NOBODY = f"""
mount -t tmpfs -o mode=755 none /dev/net
if [ "$1" = tun ]; then mknod /dev/net/tun c 10 200 && chmod 666 /dev/net/tun; fi
mount --bind "$2" /etc/subuid && mount --bind "$2" /etc/subgid || exit
shift 2
exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "$@"
"""
pytestmark = pytest.mark.root("becomes another user")


class User:
    """An ordinary user with a home, and the command line as this user runs it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.subordinate = False
        self.has_network = True
        (root / "home").mkdir()
        os.chown(root / "home", NOBODY, NOBODY)

    def farcall(self, *arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        ranges = self.root / "ranges"
        ranges.write_text(f"{NOBODY}:500000:65536\n" if self.subordinate else "")
        network = "tun" if self.has_network else "none"
        command = ["unshare", "--mount", "sh", "-c", AS_NOBODY, "sh", network, str(ranges)]
        command += [sys.executable, "-m", "farcall", *map(str, arguments)]
        home = self.root / "home"
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "FARCALL_STATE_DIR": str(home / "state")}
        return subprocess.run(
            command, env=environment, cwd=self.root, capture_output=True, text=True, timeout=timeout, check=False
        )


@pytest.fixture
def user() -> Iterator[User]:
    with short_directory() as root:
        root.chmod(0o755)
        made = User(root)
        if made.farcall("--version").returncode != 0:
            pytest.skip("needs this farcall and its Python where an ordinary user may read them")
        yield made
        made.farcall("server", "stop", "--force")


def program(root: Path, image: str, body: str) -> Path:
    file = root / "program.py"
    file.write_text(
        f"import farcall\nimage = {image}\napp = farcall.App('ordinary', image=image)\n"
        f"@app.function()\ndef f():\n    {body}\n@app.local_entrypoint()\ndef main():\n    print(f.remote())\n"
    )
    return file


def test_a_step_without_a_network_says_so(user: User, programs: Path) -> None:
    user.has_network = False
    copy = user.root / "programs"
    shutil.copytree(programs, copy, symlinks=True)
    copy.chmod(0o755)
    # Files are given away as far as that is possible: packages do that when they are unpacked.
    command = "chown ada /etc/passwd && stat -c owner=%u /etc/passwd; false"
    image = f"farcall.Image.from_scratch().add_local_dir({str(copy)!r}, '/', copy=True).run_commands({command!r})"
    done = user.farcall("run", program(user.root, image, "pass"))
    assert done.returncode == 1
    assert "  owner=0\n" in done.stderr
    assert done.stderr.splitlines()[-2] == (
        f"no network on {os.uname().nodename}: there is no /dev/net/tun; `sudo modprobe tun` makes it"
    )


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("subordinate", [False, True], ids=["one id", "subordinate ids"])
def test_debian_with_packages(user: User, subordinate: bool) -> None:
    user.subordinate = subordinate
    image = "farcall.Image.debian_slim('3.11').apt_install('ffmpeg').pip_install('numpy', 'pandas')"
    body = """\
import os, shutil, numpy, pandas
    return shutil.which("ffmpeg"), pandas.Series(numpy.arange(4)).sum().item(), os.stat("/var/local").st_gid"""
    done = user.farcall("run", program(user.root, image, body), timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"('/usr/bin/ffmpeg', 6, {50 if subordinate else 0})\n"
