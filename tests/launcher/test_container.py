"""What a container is, as seen from inside, and how its end is told."""

import os
import re
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from launcher_harness import Rig, cgroups_of, eventually

from farcall.errors import AlreadyExistsError, ContainerStartError, InvalidError, NotFoundError
from farcall.launcher import seccomp, syscalls
from farcall.spec.container import Bind, Limits

_WAIT = "import socket; socket.socket(fileno=3).recv(1)"


def status(rig: Rig, code: str, start: str) -> tuple[int | None, int | None]:
    exited = rig.run(code, start=start).exited
    assert not exited.killed_by_us
    assert not exited.out_of_memory
    return exited.exit_code, exited.signal


def test_output_and_success(rig: Rig, start: str) -> None:
    result = rig.run("print('hello', os.getpid())", start=start)
    assert result.output == "hello 2\n"
    assert (result.exited.exit_code, result.exited.signal) == (0, None)


def test_exit_code_is_exact(rig: Rig, start: str) -> None:
    assert status(rig, "sys.exit(7)", start) == (7, None)
    assert status(rig, "os._exit(255)", start) == (255, None)
    assert status(rig, "raise SystemExit", start) == (0, None)
    assert status(rig, "raise ValueError('x')", start) == (1, None)


def test_signals_are_exact(rig: Rig, start: str) -> None:
    assert status(rig, "import ctypes; ctypes.string_at(0)", start) == (None, signal.SIGSEGV)
    assert status(rig, "os.abort()", start) == (None, signal.SIGABRT)
    assert status(rig, "os.kill(os.getpid(), 9)", start) == (None, signal.SIGKILL)
    assert status(rig, "os.kill(os.getpid(), 15)", start) == (None, signal.SIGTERM)


def test_exit_handlers_and_threads_end_as_in_any_interpreter(rig: Rig, start: str) -> None:
    code = """
import atexit, threading
atexit.register(lambda: print("handler"))
threading.Thread(target=lambda: (threading.main_thread().join(), print("thread"))).start()
print("main", end=" ")
"""
    assert rig.run(code, start=start).output == "main thread\nhandler\n"


def test_a_signal_reaches_the_runner(rig: Rig, start: str) -> None:
    code = """
import signal, time
signal.signal(signal.SIGUSR1, lambda *_: (os.write(1, b"caught\\n"), sys.exit(3)))
print("ready", flush=True)
time.sleep(60)
"""
    container = rig.start(code, start=start)
    assert container.read_line() == "ready"
    rig.wait(rig.client.signal(container.id, signal.SIGUSR1))
    result = container.result()
    assert result.output == "caught\n"
    assert result.exited.exit_code == 3


def test_interrupt_is_a_keyboard_interrupt(rig: Rig, start: str) -> None:
    code = """
import time
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""
    container = rig.start(code, start=start)
    assert container.read_line() == "ready"
    rig.wait(rig.client.signal(container.id, signal.SIGINT))
    assert container.result().output == "interrupted\n"


def test_kill_ends_everything(rig: Rig) -> None:
    container = rig.start("os.system('sleep 60 & sleep 60')")
    rig.wait(rig.client.kill(container.id))
    exited = container.result().exited
    assert (exited.signal, exited.killed_by_us) == (signal.SIGKILL, True)


def test_processes_left_behind_are_killed(rig: Rig) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '61.25'], start_new_session=True).pid)"
    result = rig.run(code)  # its end comes although the orphan holds stdout
    assert result.exited.exit_code == 0
    assert not _find_process("sleep\x0061.25")


def test_orphans_are_reaped(rig: Rig) -> None:
    code = """
import subprocess, time
subprocess.run(["sh", "-c", "sleep 0.01 & exit"])
deadline = time.monotonic() + 10
while len(found := [p for p in os.listdir("/proc") if p.isdigit()]) > 2 and time.monotonic() < deadline:
    time.sleep(0.01)
print(sorted(found))
"""
    assert rig.run(code).output == "['1', '2']\n"


def test_subprocess_statuses_are_the_runners_own(rig: Rig, start: str) -> None:
    code = """
import subprocess, multiprocessing, threading, concurrent.futures
print(subprocess.run(["sh", "-c", "exit 5"]).returncode)
with multiprocessing.get_context("fork").Pool(2) as pool: print(pool.map(abs, [-1, -2]))
with concurrent.futures.ThreadPoolExecutor(2) as pool: print(list(pool.map(abs, [-3])))
"""
    assert rig.run(code, start=start).output == "5\n[1, 2]\n[3]\n"


def test_descriptors(rig: Rig, start: str) -> None:
    code = """
import socket, stat
print(sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")))
print(os.path.samestat(os.stat(0), os.stat("/dev/null")))
control, life = socket.socket(fileno=3), socket.socket(fileno=5)
print(control.recv(5), life.type == socket.SOCK_SEQPACKET)
control.send(b"pong")
os.pwrite(4, b"marked", 0)
"""
    container = rig.start(code, start=start)
    container.control.send(b"hello")
    assert container.control.recv(10) == b"pong"
    page = os.dup(container.page)
    assert container.result().output.splitlines() == ["[0, 1, 2, 3, 4, 5]", "True", "b'hello' True"]
    assert os.pread(page, 6, 0) == b"marked"
    os.close(page)


def test_both_starts_look_like_a_fresh_interpreter(rig: Rig) -> None:
    code = """
import gc, signal, site, threading
print(sys.argv, sys.path[1:], dict(os.environ).keys(), os.getcwd(), os.umask(0))
print(gc.isenabled(), threading.main_thread() is threading.current_thread(), site.getusersitepackages())
print([signal.getsignal(n) for n in range(1, 32) if n not in (9, 19)])
print(sys.modules["__main__"].__file__, os.getsid(0), os.getpgrp(), os.nice(0), sys.flags)
print(open("/proc/self/cmdline").read() and sys.executable, sys.orig_argv[0])
"""
    forked, executed = (
        rig.run(code, start=start, env={"PYTHONPATH": "/mnt/a:/mnt/b"}, container_id=f"same-{start}").output
        for start in ("fork", "exec")
    )
    assert forked.splitlines() == executed.splitlines()


def test_environment_and_directory(rig: Rig, start: str) -> None:
    code = "print(os.environ['A'], os.environ['HOME'], os.getcwd(), os.uname().nodename, os.getuid())"
    result = rig.run(code, start=start, env={"A": "b"}, cwd="/mnt/deep/er", container_id=f"ta-named-{start}")
    assert result.output == f"b /root /mnt/deep/er ta-named-{start} 0\n"


def test_a_variable_only_a_new_interpreter_honours_starts_one(rig: Rig) -> None:
    result = rig.run("print(hash('a'))", env={"PYTHONHASHSEED": "0"})
    assert result.output == rig.run("print(hash('a'))", env={"PYTHONHASHSEED": "0"}).output
    assert any("PYTHONHASHSEED" in note for note in result.started.notes)


def test_timeline_is_in_order(rig: Rig, start: str) -> None:
    timeline = rig.run("pass", start=start).started.timeline
    assert {"cgroup", "born", "root file system", "seccomp", "runner"} <= timeline.keys()
    assert list(timeline.values()) == sorted(timeline.values())


def test_binds(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir(mode=0o700)
    secret = tmp_path / "source/private.txt"
    secret.write_text("only the owner reads this")
    secret.chmod(0o600)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("/etc/passwd")
    binds = (
        Bind(str(tmp_path / "source"), "/srv/app"),
        Bind(str(secret), "/etc/one-file"),
        Bind(str(tmp_path / "data"), "/data", read_only=False),
        Bind("/nowhere", "/missing", optional=True),
    )
    code = """
print(open("/srv/app/private.txt").read() == open("/etc/one-file").read(), os.path.exists("/missing"))
try: open("/srv/app/new", "w")
except OSError as error: print(error.strerror)
open("/data/result", "w").write("done")
print(os.stat("/srv/app/private.txt").st_uid)
"""
    assert rig.run(code, binds=binds).output == "True False\nRead-only file system\n0\n"
    assert (tmp_path / "data/result").read_text() == "done"
    assert (tmp_path / "data/result").stat().st_uid == os.getuid()


def test_a_device_node_can_be_used_where_it_is_bound(rig: Rig, tmp_path: Path) -> None:
    """As those of GPUs are, which no test has."""
    (tmp_path / "nvidia0").symlink_to("/dev/zero")
    code = """
import stat
print(stat.S_ISCHR(os.stat("/dev/nvidia0").st_mode), os.path.exists("/dev/nvidia1"))
with open("/dev/nvidia0", "r+b", buffering=0) as device: print(device.read(4), device.write(b"x"))
"""
    binds = (Bind(str(tmp_path / "nvidia0"), "/dev/nvidia0", read_only=False),)
    assert rig.run(code, binds=binds).output == "True False\nb'\\x00\\x00\\x00\\x00' 1\n"


def test_a_missing_source_is_named(rig: Rig, start: str) -> None:
    with pytest.raises(ContainerStartError, match="/nowhere does not exist"):
        rig.run("pass", binds=(Bind("/nowhere", "/missing"),), start=start)


def test_a_symlink_in_a_bind_does_not_lead_out(rig: Rig, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "source").mkdir()
    (tmp_path / "source/link").symlink_to(outside)
    binds = (Bind(str(tmp_path / "source"), "/app"), Bind(str(tmp_path / "source"), "/app/link/inner"))
    with pytest.raises(ContainerStartError, match="/app/link/inner"):
        rig.run("pass", binds=binds)
    assert list(outside.iterdir()) == []


def test_bad_requests(rig: Rig) -> None:
    with pytest.raises(InvalidError, match="no container id"):
        rig.run("pass", container_id="../../etc")
    container = rig.start("import time; time.sleep(60)", container_id="taken")
    with pytest.raises(AlreadyExistsError):
        rig.run("pass", container_id="taken")
    with pytest.raises(NotFoundError):
        rig.wait(rig.client.signal("nobody", 15))
    rig.wait(rig.client.kill(container.id))
    container.result()


def test_an_interpreter_that_is_gone(rig: Rig, start: str) -> None:
    import msgspec

    whole = rig.interpreter
    rig.interpreter = msgspec.structs.replace(whole, executable="/usr/bin/no-python")
    try:
        with pytest.raises(ContainerStartError, match="no-python"):
            rig.run("pass", start=start)
    finally:
        rig.interpreter = whole


def test_memory_limit(rig: Rig, memory_cgroup: None, start: str) -> None:
    limits = Limits(memory_limit=64)
    exited = rig.run("x = bytearray(200 << 20)", limits=limits, start=start).exited
    assert (exited.signal, exited.out_of_memory) == (signal.SIGKILL, True)
    assert exited.memory_limit == 64 << 20
    assert 48 << 20 < exited.memory_peak <= 64 << 20
    fine = rig.run("x = bytearray(20 << 20)", limits=limits, start=start).exited
    assert (fine.exit_code, fine.out_of_memory) == (0, False)
    assert fine.memory_peak > 20 << 20


def test_pids_limit(rig: Rig, memory_cgroup: None) -> None:
    code = """
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            import time; time.sleep(60)
        made += 1
except OSError as error:
    print(made < 20, error.strerror)
"""
    assert rig.run(code, limits=Limits(pids=20)).output == "True Resource temporarily unavailable\n"


def test_disk_limit(rig: Rig) -> None:
    code = """
import time
with open("/root/big", "wb") as file:
    for _ in range(40): file.write(os.urandom(1 << 20))
time.sleep(60)
"""
    exited = rig.run(code, limits=Limits(disk=20)).exited
    assert exited.disk_exceeded
    assert not exited.killed_by_us


def test_nothing_is_left(rig: Rig) -> None:
    container = rig.start("open('/root/file', 'w').write('x'); os.makedirs('/tmp/a/b'); sys.stdin.read(); " + _WAIT)
    area = rig.area_of(container.id)
    assert area.is_dir()
    assert cgroups_of(rig.state) or "no writable cgroup" in container.notes[0]
    container.control.send(b"x")
    container.result()
    assert not area.exists()
    assert not list((rig.state / "journal").iterdir())
    assert cgroups_of(rig.state) == []
    eventually(lambda: not list((rig.state / "trash").iterdir()), "the area's content is deleted")


def test_an_area_made_ahead_is_like_one_made_at_once(rig: Rig, tmp_path: Path) -> None:
    binds = (Bind(str(tmp_path), "/srv/a/b"), Bind("/etc/hostname", "/opt/one"), Bind(str(tmp_path), "/var/run/../x"))
    code = "os.system('ls -lnR /root /tmp /var /opt /srv /run /home /etc/*.conf /etc/host* | grep -v total')"
    outputs: set[str] = set()
    ready = 0
    for _ in range(6):
        before = len(list((rig.state / "containers").iterdir()))
        outputs.add(re.sub(r"[A-Z][a-z]{2} +\d+ +[\d:]+", "", rig.run(code, binds=binds, container_id="same").output))
        ready += before
        eventually(lambda: len(list((rig.state / "containers").iterdir())) > 0, "areas are made ahead")
    assert ready > 0
    assert len(outputs) == 1


def test_an_area_made_ahead_tells_nothing_of_other_containers(rig: Rig, tmp_path: Path) -> None:
    for _ in range(3):
        rig.run("pass", binds=(Bind(str(tmp_path), "/srv/of-another"),))
    for _ in range(3):
        assert rig.run("print(os.listdir('/srv'))").output == "[]\n"


def test_many_at_once(rig: Rig) -> None:
    containers = [rig.start("print('up', flush=True); import time; time.sleep(60)") for _ in range(12)]
    assert {container.read_line() for container in containers} == {"up"}
    live, _ = rig.wait(rig.client.list())
    assert {container.id for container in containers} <= {found.container_id for found in live}
    for found in live:
        os.close(found.pidfd)
    for container in containers:
        rig.wait(rig.client.kill(container.id))
    assert {container.result().exited.signal for container in containers} == {signal.SIGKILL}


def test_prepare(rig: Rig) -> None:
    rig.wait(rig.client.prepare(rig.interpreter))
    started = rig.run("pass").started
    assert not any("exec" in note for note in started.notes)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize(
    "assemble",
    [
        seccomp.assemble,
        partial(seccomp.assemble, unix_sockets_only=True),
        partial(seccomp.assemble, root_owns_all=True),
        partial(seccomp.assemble, unix_sockets_only=True, root_owns_all=True),
        seccomp.owners_kept,
    ],
)
def test_filters_assemble(machine: str, assemble: Callable[[str], bytes]) -> None:
    program = assemble(machine)
    assert len(program) % 8 == 0
    for at in range(0, len(program), 8):
        code, if_true, if_false = program[at], program[at + 2], program[at + 3]
        if code & 0x07 == 0x05:  # a jump: it stays inside
            assert at // 8 + 1 + max(if_true, if_false) < len(program) // 8
    assert syscalls.machine() in ("x86_64", "aarch64")


def _find_process(command: str) -> bool:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if command.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    return True
            except OSError:
                continue
    return False


def test_a_second_worker_is_refused(rig: Rig) -> None:
    from farcall.errors import ConflictError
    from farcall.launcher.client import LauncherClient

    with pytest.raises(ConflictError, match="another worker"):
        rig.wait(LauncherClient.connect(rig.state))


def test_a_stranger_is_answered(rig: Rig) -> None:
    from farcall.launcher.worker_link import SOCKET_NAME

    assert (rig.state / SOCKET_NAME).stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        directory = os.open(rig.state, os.O_PATH)
        stranger.connect(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
        os.close(directory)
        assert b"conflict" in stranger.recv(4096)
    assert rig.run("print(1)").output == "1\n"
