"""One container's network namespace, with a slirp4netns of its own that connects it to the outside.

Making one takes a child, which the launcher does not wait for: it enters the new namespace, configures it, hands it
back as a descriptor, returns to the host's and becomes slirp4netns. Without root there is no return, and a child of its
own does the first part. The launcher itself never changes its namespace.
"""

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import IPv4Network
from typing import NamedTuple, NoReturn

from farcall.launcher import syscalls
from farcall.launcher.netlink import Netlink

DEVICE = "eth0"
MTU = 65520  # bytes; the link ends in slirp4netns, which cuts real packets itself
_OWN_NAMESPACE = "/proc/self/ns/net"
MAX_ERROR = 4096  # bytes of a child's complaint that are read


class Recipe(NamedTuple):
    """What every namespace of one launcher has in common.

    `name` becomes slirp4netns's argv[0], by which a later launcher recognises it; `cidr` the network behind `DEVICE`.
    """

    binary: str
    options: tuple[str, ...]
    name: str
    cidr: str
    prohibited: frozenset[IPv4Network]


class SlirpError(OSError):
    """slirp4netns itself did not start; the namespace was made."""


class Namespace:
    """A namespace being made, ready, or in use. `netns_fd` is -1 until it is there; `close` ends slirp4netns."""

    def __init__(self, recipe: Recipe) -> None:
        """Begins to make one; returns at once. Raises OSError when the system has no process or descriptor left."""
        self.netns_fd = -1
        self.recipe = recipe
        self._start()

    def restart(self) -> None:
        """Begins to connect the same namespace again, after its slirp4netns has died. Raises as the constructor."""
        if not self.reaped():
            raise OSError("slirp4netns still runs")
        self._close_channel()
        os.close(self._pidfd)
        self._start()

    def _start(self) -> None:
        self._said = b""
        self._channel, theirs = socket.socketpair()
        self._errors, errors_end = os.pipe()
        self._pidfd = -1
        try:
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                _child(errors_end, lambda: _become_slirp(self.recipe, self.netns_fd, theirs, errors_end, parent))
            try:
                self._pidfd = os.pidfd_open(pid)
            except OSError:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
        except BaseException:
            self._close_channel()
            raise
        finally:
            os.close(errors_end)
            theirs.close()

    @property
    def ready(self) -> bool:
        """Whether the network works: slirp4netns has said so."""
        return self._said == b"n1"

    def advance(self, wait: float = 0) -> bool:
        """Takes what the children have said, waiting up to `wait` seconds for them to end. Returns `ready`.

        Raises OSError with the kernel's complaint when the namespace cannot be made, SlirpError with slirp4netns's.
        """
        deadline = time.monotonic() + wait
        while not self.ready:
            self._channel.settimeout(max(deadline - time.monotonic(), 0))
            try:
                data, received, _, _ = socket.recv_fds(self._channel, 16, 1)
            except (BlockingIOError, TimeoutError):
                if wait:
                    raise OSError(f"slirp4netns was not ready within {wait:g} s") from None
                return False
            if received:
                self.netns_fd = received[0]
            if not data:
                raise (SlirpError if self._said else OSError)(self._complaint())
            self._said += data
        self._close_channel()
        return True

    def alive(self) -> bool:
        """Whether slirp4netns still runs."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Ends slirp4netns and lets go of the namespace, which goes with its last process. Does not wait: `reaped`."""
        self._close_channel()
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if self.netns_fd >= 0:
            os.close(self.netns_fd)
            self.netns_fd = -1

    def reaped(self) -> bool:
        """Whether slirp4netns has ended; collects its status unless somebody has."""
        try:
            # By descriptor: by number, it could be somebody else's child by now.
            return os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG) is not None
        except ChildProcessError:
            return True

    def forget(self) -> None:
        """Closes the last descriptor of a namespace that is closed and reaped."""
        os.close(self._pidfd)

    def _close_channel(self) -> None:
        self._channel.close()
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1

    def _complaint(self) -> str:
        lines = os.read(self._errors, MAX_ERROR).decode(errors="replace").strip().splitlines()
        return lines[0] if lines else "slirp4netns ended without a word"


def prohibit(namespaces: Iterable[int], networks: Iterable[IPv4Network]) -> None:
    """Refuses traffic to further networks in namespaces that exist, from a child that enters one after the other.

    Raises OSError when any of them could not be changed.
    """
    descriptors, prohibited = list(namespaces), list(networks)

    def change() -> None:
        for descriptor in descriptors:
            syscalls.setns(descriptor, syscalls.NEWNET)
            with Netlink() as netlink:
                netlink.prohibit(prohibited)

    errors, errors_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(errors_end, change)
    os.close(errors_end)
    with open(errors, "rb") as stream:
        complaint = stream.read(MAX_ERROR).decode(errors="replace")
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    if complaint:
        raise OSError(complaint.strip())


def _child(errors: int, work: Callable[[], None]) -> NoReturn:
    """Runs `work` in a forked child, without the launcher's signal handling. Writes its complaint to `errors`."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        work()
        status = 0
    except BaseException as error:
        message = error.strerror or str(error) if isinstance(error, OSError) else repr(error)
        with suppress(OSError):
            os.write(errors, message.encode()[:MAX_ERROR])
    finally:
        os._exit(status)


def _become_slirp(recipe: Recipe, netns: int, channel: socket.socket, errors: int, parent: int) -> None:
    """In the first child: slirp4netns for the namespace `netns`, or for a new one when that is -1."""
    _die_with(parent)
    if netns >= 0:
        channel.send(b"n")
    else:
        netns = _new_namespace(recipe.prohibited, errors)
        socket.send_fds(channel, [b"n"], [netns])

    import resource  # here because only this child needs it

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one descriptor for each connection of the container
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # nobody reads its complaints once it runs
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(errors, 2)
    os.set_inheritable(netns, True)
    channel.set_inheritable(True)
    arguments = [recipe.name, "--configure", f"--mtu={MTU}", f"--cidr={recipe.cidr}", "--disable-host-loopback"]
    arguments += [*recipe.options, "--netns-type=path", f"--ready-fd={channel.fileno()}"]
    os.execve(recipe.binary, [*arguments, f"/proc/self/fd/{netns}", DEVICE], {"PATH": os.defpath})


def _new_namespace(prohibited: Iterable[IPv4Network], errors: int) -> int:
    """A configured namespace; this process stays where it is, or comes back."""
    if syscalls.is_initial_user_namespace():
        host = os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        netns = _enter_new_namespace(prohibited)
        syscalls.setns(host, syscalls.NEWNET)
        os.close(host)
        return netns
    # The host's belongs to another user namespace: nobody comes back to it from here.
    ours, theirs = socket.socketpair()
    me = os.getpid()
    maker = os.fork()
    if maker == 0:
        _child(errors, lambda: _hand_over_namespace(prohibited, theirs, me))
    theirs.close()
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(maker, 0)
    if not descriptors:
        os._exit(1)  # the maker has said why
    return descriptors[0]


def _hand_over_namespace(prohibited: Iterable[IPv4Network], channel: socket.socket, parent: int) -> None:
    _die_with(parent)
    socket.send_fds(channel, [b"n"], [_enter_new_namespace(prohibited)])


def _enter_new_namespace(prohibited: Iterable[IPv4Network]) -> int:
    syscalls.unshare(syscalls.NEWNET)
    with Netlink() as netlink:
        netlink.link_up("lo")
        netlink.prohibit(prohibited)
    configure_namespace()
    return os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)


def configure_namespace() -> None:
    """Sets what the calling process's network namespace allows without capabilities; where /proc is read-only, nothing.

    Ports below 1024 may be bound, unprivileged ping works, and interfaces still to come have no IPv6, so that no
    link-local address can be reached.
    """
    for name, values in (
        ("ipv4/ip_unprivileged_port_start", ("0",)),
        # Groups must be mapped in the writer's user namespace: all there are, or at least its root's.
        ("ipv4/ping_group_range", ("0 2147483647", "0 65535", "0 0")),
        ("ipv6/conf/default/disable_ipv6", ("1",)),
    ):
        for value in values:
            with suppress(OSError), open(f"/proc/sys/net/{name}", "w") as stream:
                stream.write(value)
                stream.flush()
                break


def _die_with(parent: int) -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)
