"""The base template: a process per interpreter with the runner loaded and no user code, from which containers fork.

Runs under the user's interpreter, outside any container, as trusted as the launcher: it never sees what a container is
made of (that is in a memfd it does not read), forks on request, and dies with the launcher.
Started as a script, `python RUNNER_PATH/farcall/launcher/template.py`, with its request socket as descriptor 3.
"""

import os
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from farcall.spec.container import ContainerSpec

SOCKET_FD = 3
READY = b"ready "  # followed by the fingerprint of what a plan is here
FORKED = b"forked"  # in answer to each request, once the descriptors are the child's alone
BROKEN = b"broken: "  # followed by why; the template ends
HAS_IDMAP, HAS_NETNS = 1, 2  # bits of a request's one byte; they say which descriptors follow the seven fixed ones


def run() -> None:
    """Be the template until the launcher is gone."""
    import gc
    import signal
    import socket

    channel = socket.socket(fileno=SOCKET_FD)
    try:
        import farcall.launcher.init
        import farcall.runner.main  # pyright: ignore[reportUnusedImport] - loaded for the forks to share
        from farcall.launcher import descriptors
        from farcall.launcher.plan import fingerprint

        threads = len(os.listdir("/proc/self/task"))
        if threads > 1:
            raise RuntimeError(f"{threads - 1} threads were started by what the interpreter imports; forking is unsafe")
    except BaseException as error:
        channel.send(BROKEN + f"{type(error).__name__}: {error}".encode()[:4096])
        return
    farcall.launcher.init.syscalls.set_process_name("farcall-base")
    # A terminal's or a supervisor's signals are the launcher's business; this process ends with its socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # intermediates are reaped by the kernel
    # All that lives now lives on in every child: keep the collector from writing to its pages.
    gc.disable()
    gc.collect()
    gc.freeze()
    channel.send(READY + fingerprint())
    while True:
        request, fds = descriptors.receive(channel, 16, 16)
        if not request:
            return
        if os.fork() == 0:
            try:
                _make_container(request[0], fds)
            finally:
                os._exit(1)  # nothing may unwind into the template's own frames
        descriptors.close(fds)
        channel.send(FORKED)


def _make_container(flags: int, fds: list[int]) -> None:
    from farcall.launcher import init
    from farcall.launcher.plan import PlanFds, decode_plan

    status, control, stdout, stderr, page, lifeline, plan_fd, *rest = fds
    idmap = rest.pop(0) if flags & HAS_IDMAP else None
    netns = rest.pop(0) if flags & HAS_NETNS else None
    plan_fds = PlanFds(status, control, stdout, stderr, page, lifeline, plan_fd, idmap, netns)
    plan = decode_plan(os.pread(plan_fds.plan, os.fstat(plan_fds.plan).st_size, 0))
    init.make_container(plan, plan_fds, _enter_runner)


def _enter_runner(spec: "ContainerSpec") -> NoReturn:
    """Make the process look like one that has just started with the bootstrap script, and run the runner."""
    import gc
    import site
    import types

    from farcall.launcher import init

    init.syscalls.close_range(6)
    gc.enable()
    script = init.bootstrap_path(spec)
    sys.argv = [script]
    sys.orig_argv = [sys.executable, script]
    init.syscalls.set_command_line(sys.orig_argv)
    python_path = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    assert spec.interpreter is not None  # or it would have been started by exec
    runner_path = spec.interpreter.runner_path
    # As the site module does, leave out what a .pth file names and the container does not have.
    own = [path for path in sys.path if path != runner_path and (path.endswith(".zip") or os.path.exists(path))]
    sys.path[:] = [runner_path, *python_path, *own]
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    # Worked out at the next question, from the container's HOME.
    site.USER_SITE = site.USER_BASE = None
    main_module = types.ModuleType("__main__")
    main_module.__file__ = script
    sys.modules["__main__"] = main_module
    os._exit(_run())


def _run() -> int:
    """Call the runner and end as the interpreter would: join threads, run exit handlers, flush."""
    import atexit
    import threading

    code = 0
    try:
        from farcall.runner.main import main

        main()
    except SystemExit as error:
        if error.code is not None:
            code = error.code & 0xFF if isinstance(error.code, int) else 1
            if not isinstance(error.code, int):
                print(error.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType] - never empty in a handler
        code = 1
    # What the interpreter itself calls at its end; there are no public names.
    threading._shutdown()  # pyright: ignore
    atexit._run_exitfuncs()  # pyright: ignore
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120  # as CPython does
    return code


# Of Python's own environment variables a fork from a running interpreter can honour these; all others, and those that
# the loader and the C library read, take the start of a new one.
_HONOURED = frozenset(
    {"PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONASYNCIODEBUG", "PYTHONBREAKPOINT"}
)
_LOADERS = ("LD_", "GLIBC_TUNABLES", "MALLOC_", "LC_", "LANG")


def needs_exec(environment: dict[str, str]) -> str | None:
    """The first variable that only a fresh interpreter honours, if there is one."""
    for name, value in environment.items():
        if name.startswith("PYTHON") and name not in _HONOURED:
            return name
        if name.startswith(_LOADERS) and value not in ("", "C.UTF-8"):
            return name
    return None


if __name__ == "__main__":
    # The script's own directory would offer this package's modules as top-level ones.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from farcall.launcher import template  # the module by its name, so that no state is in __main__

    template.run()
