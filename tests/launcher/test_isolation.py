"""What a container cannot do."""

import hashlib
import os
import signal
import tempfile
import threading
from pathlib import Path

import pytest
from launcher_harness import Rig


def test_sees_only_its_own_processes(rig: Rig, start: str) -> None:
    result = rig.run("print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()))", start=start)
    assert result.output == "[1, 2]\n"


def test_cannot_write_the_host(rig: Rig, start: str) -> None:
    code = """
for path in ("/usr/x", "/bin/x", "/lib/x", sys.base_prefix + "/x", os.environ["FARCALL_RUNNER_PATH"] + "/x",
             "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/etc/ssl/certs/x"):
    try: open(path, "w").write("x"); print("wrote", path)
    except OSError: pass
open("/root/mine", "w"); open("/tmp/mine", "w"); open("/var/tmp/mine", "w"); open("/mine", "w"); open("/dev/shm/m", "w")
"""
    assert rig.run(code, start=start).output == ""
    assert not Path("/mine").exists()


def test_cannot_see_the_host(rig: Rig, tmp_path: Path) -> None:
    home = Path.home()
    with tempfile.NamedTemporaryFile(dir="/tmp") as secret:
        shown = rig.interpreter.paths
        paths = [str(tmp_path), str(rig.state), secret.name]
        paths += [str(entry) for entry in home.iterdir() if not any(path.startswith(str(entry)) for path in shown)]
        paths += ["/etc/shadow", "/etc/ssl/private", "/run/dbus", "/boot", "/sys/kernel"]
        paths += ["/var/log/dpkg.log", "/var/lib/dpkg/status", "/dev/vda", "/dev/mem", "/dev/kmsg"]
        code = f"print([p for p in {paths!r} if os.path.exists(p)])"
        assert rig.run(code).output == "[]\n"


def test_holds_only_the_listed_capabilities(rig: Rig, start: str) -> None:
    code = """
for line in open("/proc/self/status"):
    if line.startswith(("Cap", "NoNewPrivs", "Seccomp:")): print(*line.split())
"""
    result = rig.run(code, start=start)
    assert result.output.splitlines() == [
        "CapInh: 0000000000000000",
        "CapPrm: 00000000000004eb",
        "CapEff: 00000000000004eb",
        "CapBnd: 00000000000004eb",
        "CapAmb: 0000000000000000",
        "NoNewPrivs: 1",
        "Seccomp: 2",
    ]


def test_uses_no_dropped_capability(rig: Rig) -> None:
    code = """
import socket, resource
def refused(what, call, *arguments):
    try: call(*arguments)
    except PermissionError: return
    print(what)
refused("chroot", os.chroot, "/tmp")
refused("mknod", os.mknod, "/tmp/device", 0o60600, os.makedev(254, 0))
refused("raw socket", socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)
refused("sethostname", socket.sethostname, "other")
refused("priority", os.setpriority, os.PRIO_PROCESS, 0, -10)
"""
    assert rig.run(code).output == ""


def test_filtered_calls_answer_eperm(rig: Rig, start: str) -> None:
    code = """
import ctypes, errno, platform
libc = ctypes.CDLL(None, use_errno=True)
column = 0 if platform.machine() == "x86_64" else 1
sys.path.insert(0, os.environ["FARCALL_RUNNER_PATH"])
from farcall.launcher import seccomp
for name, numbers in seccomp._DENIED.items():
    if numbers[column] is not None:
        answer = libc.syscall(numbers[column], 0, 0, 0, 0, 0)
        if answer != -1 or ctypes.get_errno() != errno.EPERM: print(name, answer, ctypes.get_errno())
libc.unshare(0x10000000); print(ctypes.get_errno() == errno.EPERM)
libc.syscall(56 if column == 0 else 220, 0x10000000 | 17, 0, 0, 0, 0); print(ctypes.get_errno() == errno.EPERM)
libc.syscall(435, 0, 0); print(ctypes.get_errno() == errno.ENOSYS)
libc.ioctl(0, 0x5412, b"x"); print(ctypes.get_errno() == errno.EPERM)
"""
    assert rig.run(code, start=start).output == "True\n" * 4


def test_cannot_read_pid_1(rig: Rig, start: str) -> None:
    code = """
for name in ("environ", "mem", "maps", "fd/0", "cwd"):
    try: os.readlink("/proc/1/cwd") if name in ("cwd", "fd/0") else open(f"/proc/1/{name}", "rb").read(1)
    except PermissionError: continue
    print(name)
print(open("/proc/1/cmdline").read().strip("\\0"))
"""
    assert rig.run(code, start=start).output == "farcall-init\n"


def test_no_network_but_loopback_when_blocked(rig: Rig) -> None:
    code = """
import socket
print([name for _, name in socket.if_nameindex()])
server = socket.create_server(("127.0.0.1", 80))
socket.create_connection(("127.0.0.1", 80), 5).close()
for address in ("1.1.1.1", "169.254.169.254"):
    try: socket.create_connection((address, 80), 2); print("reached", address)
    except OSError as error: print(error.strerror)
"""
    assert rig.run(code, block_network=True).output == "['lo']\n" + "Network is unreachable\n" * 2


def test_one_container_does_not_reach_another(rig: Rig) -> None:
    first = rig.start(
        "import socket, time\n"
        "s = socket.socket(socket.AF_UNIX); s.bind('\\0farcall-test'); s.listen()\n"
        "open('/tmp/first', 'w'); open('/dev/shm/first', 'w'); print('up', flush=True); time.sleep(60)"
    )
    assert first.read_line() == "up"
    code = """
import socket
print(os.path.exists("/tmp/first"), os.path.exists("/dev/shm/first"))
try: socket.socket(socket.AF_UNIX).connect("\\0farcall-test")
except OSError as error: print(error.strerror)
"""
    assert rig.run(code).output == "False False\nConnection refused\n"
    rig.wait(rig.client.kill(first.id))
    first.result()


def test_cannot_signal_the_host(rig: Rig) -> None:
    hits: list[int] = []
    previous = signal.signal(signal.SIGUSR2, lambda number, _: hits.append(number))
    assert threading.current_thread() is threading.main_thread()
    try:
        code = f"""
try: os.kill({os.getpid()}, 12)
except ProcessLookupError: print("no such process")
"""
        assert rig.run(code).output == "no such process\n"
        assert not hits
    finally:
        signal.signal(signal.SIGUSR2, previous)


@pytest.mark.root("only root's containers get ids of their own")
def test_files_belong_to_no_user_of_the_host(rig: Rig) -> None:
    container = rig.start("open('/tmp/mine', 'w'); print('made', flush=True); import time; time.sleep(60)")
    assert container.read_line() == "made"
    area = rig.area_of(container.id) / "root"
    assert (area / "tmp/mine").stat().st_uid == 100_000
    rig.wait(rig.client.kill(container.id))
    container.result()


def test_another_containers_secrets_are_not_in_memory(rig: Rig) -> None:
    secret = os.urandom(8).hex()
    rig.run("pass", env={"SECRET": "needle-" + secret})
    # It is told a digest only, so that what it finds is not its own question.
    code = f"""
import hashlib, re
found = 0
for line in open("/proc/self/maps").readlines():
    span, mode = line.split()[:2]
    if mode.startswith("rw"):
        start, end = (int(x, 16) for x in span.split("-"))
        with open("/proc/self/mem", "rb", 0) as memory:
            memory.seek(start)
            try: data = memory.read(end - start)
            except OSError: continue
        for match in re.finditer(b"needle" + b"-([0-9a-f]{{16}})", data):
            found += hashlib.sha256(match[1]).hexdigest() == {hashlib.sha256(secret.encode()).hexdigest()!r}
print(found)
"""
    assert rig.run(code).output == "0\n"
