"""The network of containers: out to the internet, and nowhere else.

Each container has a network namespace of its own, connected by a slirp4netns of its own (user-mode networking: no
bridge, no firewall rule, no forwarding, so nothing here meets another firewall's rules, with root or without). What a
container must not reach is refused by routes inside its namespace. The namespace belongs to the launcher's user
namespace and a container holds no capability there, so it can neither change the routes nor send around them.

Without slirp4netns a container has loopback only, and its lease says so; it never gets the host's network.
"""

import os
import shutil
import signal
import time
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path

import msgspec

from farcall.launcher.messages import NO_NETWORK
from farcall.launcher.netlink import AddressWatch, Netlink
from farcall.launcher.network_namespace import Namespace, Recipe, SlirpError, prohibit

POOL_SIZE = int(os.environ.get("FARCALL_NETWORK_POOL", "2"))  # namespaces kept ready, from the first use on
READY_SECONDS = 5.0  # how long a start waits for a namespace at most
RETRY_SECONDS = 30.0  # after a failure, no container is delayed by another attempt for this long
RECONNECT_SECONDS = 1.0  # between attempts at a slirp4netns that died under its container

# slirp4netns's own protections, the most first: what a machine refuses is left out.
_OPTIONS = (("--enable-sandbox", "--enable-seccomp"), ("--enable-sandbox",), ())

_NEVER: frozenset[IPv4Network] = frozenset(
    IPv4Network(network)
    for network in (
        "169.254.0.0/16",  # link-local, with most clouds' metadata
        "100.100.100.200/32",  # Alibaba Cloud's metadata
        "168.63.129.16/32",  # Azure's host agent
        "224.0.0.0/4",  # multicast: the host's neighbours
    )
)
_LOOPBACK = IPv4Network("127.0.0.0/8")

# Where the container's own end may live; the first that the host does not route itself is taken.
_CIDRS = ("10.0.2.0/24", "192.168.127.0/24", "172.31.254.0/24", "198.18.2.0/24")

_HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
_NO_NETWORK = "# no network\n"
_TUN = "/dev/net/tun"
_PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NetworkLease(msgspec.Struct, frozen=True):
    """One container's network: the namespace to join, and the two files of /etc that belong to it.

    `netns_fd` belongs to the pool; None means a fresh, empty namespace with `lo` up. `note` is what a user should know,
    in one line, when the container has less network than it asked for.
    """

    netns_fd: int | None
    resolv_conf: str
    hosts: str
    note: str | None = None


class NetworkPool:
    """The launcher's supply of networks. Holds no process before the first use, `size` of them afterwards.

    slirp4netns dies with the launcher (the kernel sees to it), and a namespace with its last process.
    """

    def __init__(self, state_dir: Path, rootless: bool, size: int | None = None) -> None:
        self._journal = state_dir / "network"
        self._name = f"farcall-network {state_dir}"
        self._rootless = rootless
        self._size = POOL_SIZE if size is None else size
        self._spare: list[Namespace] = []
        self._leased: dict[int, Namespace] = {}
        self._closed: list[Namespace] = []
        self._recipe: Recipe | None = None
        self._watch: AddressWatch | None = None
        self._unforbidden: set[IPv4Network] = set()  # addresses the host has got, not yet refused in every namespace
        self._protection = 0
        self._failure = ""
        self._retry_at = 0.0
        self._reconnect_at = 0.0

    def take(self, blocked: bool) -> NetworkLease:
        """A network for one container, never used before. Never raises: the lease notes what is missing."""
        if blocked:
            return NetworkLease(None, _NO_NETWORK, _HOSTS)
        if self._failure and time.monotonic() < self._retry_at:
            return NetworkLease(None, _NO_NETWORK, _HOSTS, self._failure)
        try:
            namespace = self._next()
        except OSError as error:
            self._failure = f"{NO_NETWORK} on {os.uname().nodename}: {error.strerror or error}"
            self._retry_at = time.monotonic() + (0 if self._recipe is None else RETRY_SECONDS)
            self._drop_spare()
            return NetworkLease(None, _NO_NETWORK, _HOSTS, self._failure)
        self._failure = ""
        self._leased[namespace.netns_fd] = namespace
        resolv_conf, note = _resolv_conf(namespace.recipe.cidr)
        return NetworkLease(namespace.netns_fd, resolv_conf, _HOSTS, note)

    def give_back(self, lease: NetworkLease) -> None:
        """Ends the network of a container that is gone. Does not wait; closes `lease.netns_fd`."""
        if lease.netns_fd is not None and (namespace := self._leased.pop(lease.netns_fd, None)) is not None:
            self._dispose(namespace)

    @property
    def spare(self) -> int:
        """How many networks are ready to be taken."""
        return sum(namespace.ready for namespace in self._spare)

    def prepare(self) -> None:
        """Begins the first network before anybody asks, as when a first container is about to come. Does not wait."""
        if not self._spare and self._size > 0 and not self._failure:
            with suppress(OSError):  # take says why
                self._spare.append(Namespace(self._recipe or self._begin()))

    def refill(self) -> bool:
        """Brings the pool one step nearer to its size; reconnects containers whose slirp4netns died. Never blocks.

        Returns whether there is more to do, which waits for children that need a few milliseconds.
        """
        self._collect()
        if self._recipe is None or self._failure:
            return bool(self._closed)
        try:
            self._follow_addresses()
            self._reconnect()
            for namespace in self._spare:
                namespace.advance()
            if len(self._spare) < self._size and all(namespace.ready for namespace in self._spare):
                self._spare.append(Namespace(self._recipe))
        except OSError:
            self._drop_spare()  # the next take tries again, and says why if that fails too
            return False
        return bool(self._closed) or self.spare < self._size

    def sweep(self) -> None:
        """Ends what an earlier launcher on this state directory left, if anything outlived it."""
        try:
            self._journal.unlink()
        except OSError:
            return  # it started nothing, or cleaned up itself
        self._kill_named()

    def _kill_named(self) -> None:
        """Ends every slirp4netns of this state directory, by its name."""
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with suppress(OSError), open(f"/proc/{entry.name}/cmdline", "rb") as stream:
                    # Opened before it is read: a process that answers now is the one that the descriptor means.
                    pidfd = os.pidfd_open(int(entry.name))
                    try:
                        if stream.read(4096).split(b"\0")[0] == os.fsencode(self._name):
                            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    finally:
                        os.close(pidfd)

    def close(self) -> None:
        """Ends every network, those of running containers too."""
        self._drop_spare()
        for namespace in self._leased.values():
            self._dispose(namespace)
        self._leased.clear()
        deadline = time.monotonic() + READY_SECONDS
        while self._closed and time.monotonic() < deadline:
            self._collect()
            time.sleep(0.001)
        if self._recipe is not None:
            # While it starts, slirp4netns has a child of its own, which outlives it when it is killed just then.
            self._kill_named()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._recipe = None
        self._journal.unlink(missing_ok=True)

    def _next(self) -> Namespace:
        burst = self._recipe is not None and not self._spare and self._size > 0
        if self._recipe is None:
            self._begin()
        self._follow_addresses()
        while self._spare:
            namespace = self._spare.pop(0)
            try:
                if namespace.advance(READY_SECONDS) and namespace.alive():
                    return namespace
            except SlirpError:
                pass  # made anew below, with its complaint
            except OSError:
                self._dispose(namespace)
                raise
            self._dispose(namespace)
        while True:
            assert self._recipe is not None
            namespace = Namespace(self._recipe)
            try:
                namespace.advance(READY_SECONDS)
            except SlirpError:
                self._dispose(namespace)
                self._protection += 1
                if self._protection == len(_OPTIONS):
                    self._protection = 0
                    raise
                self._recipe = self._recipe._replace(options=_OPTIONS[self._protection])
            except OSError:
                self._dispose(namespace)
                raise
            else:
                if burst:  # the next take may be near: its network comes up while this one's container is made
                    self._spare.append(Namespace(self._recipe))
                return namespace

    def _begin(self) -> Recipe:
        """Finds what is needed at the first use. Raises OSError that says what is missing."""
        sudo = "sudo " if self._rootless else ""
        binary = shutil.which("slirp4netns", path=f"{os.environ.get('PATH', '')}:{_PATHS}")
        if binary is None:
            raise OSError(f"slirp4netns is missing; `{sudo}apt install slirp4netns` gives containers the internet")
        if not os.path.exists(_TUN):
            raise OSError(f"there is no {_TUN}; `{sudo}modprobe tun` makes it")
        if not os.access(_TUN, os.R_OK | os.W_OK):
            raise OSError(f"{_TUN} may not be opened; `sudo chmod 666 {_TUN}` gives containers the internet")
        if self._watch is None:
            self._watch = AddressWatch()  # before the addresses are read, so that none is missed
        self._recipe = self._recipe_now(binary)
        with suppress(OSError):  # a full disk; the kernel ends slirp4netns with the launcher all the same
            self._journal.write_text(f"{os.getpid()}\n")
        return self._recipe

    def _recipe_now(self, binary: str) -> Recipe:
        with Netlink() as netlink:
            own = {network for network in netlink.local_networks() if not network.subnet_of(_LOOPBACK)}
            routed = own | netlink.routed_networks()
        free = (cidr for cidr in _CIDRS if not any(IPv4Network(cidr).overlaps(network) for network in routed))
        return Recipe(binary, _OPTIONS[self._protection], self._name, next(free, _CIDRS[0]), _NEVER | own)

    def _follow_addresses(self) -> None:
        """Refuses in every namespace what has become the host's own address."""
        assert self._watch is not None
        assert self._recipe is not None
        if self._watch.changed():
            before, self._recipe = self._recipe, self._recipe_now(self._recipe.binary)
            if self._recipe != before:
                self._unforbidden |= self._recipe.prohibited - before.prohibited
                self._drop_spare()
        if self._unforbidden:
            prohibit(self._leased, self._unforbidden)
            self._unforbidden.clear()

    def _reconnect(self) -> None:
        """Connects running containers again whose slirp4netns has died."""
        now = time.monotonic()
        dead = [namespace for namespace in self._leased.values() if not namespace.alive()]
        if dead and now >= self._reconnect_at:
            self._reconnect_at = now + RECONNECT_SECONDS
            for namespace in dead:
                with suppress(OSError):  # it is tried again
                    namespace.restart()
        for namespace in self._leased.values():
            with suppress(OSError):
                namespace.advance()

    def _drop_spare(self) -> None:
        for namespace in self._spare:
            self._dispose(namespace)
        self._spare.clear()

    def _dispose(self, namespace: Namespace) -> None:
        namespace.close()
        self._closed.append(namespace)

    def _collect(self) -> None:
        """Forgets the closed namespaces whose process is gone."""
        waiting: list[Namespace] = []
        for namespace in self._closed:
            if namespace.reaped():
                namespace.forget()
            else:
                waiting.append(namespace)
        self._closed = waiting


def _resolv_conf(cidr: str) -> tuple[str, str | None]:
    """The container's resolv.conf, and what is wrong with the host's.

    slirp4netns answers DNS at the third address of its network by asking the host's first IPv4 nameserver from the
    host's side, so one on the host's loopback (systemd-resolved, dnsmasq) works too.
    """
    kept: list[str] = []
    usable = False
    with suppress(OSError), open("/etc/resolv.conf", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            match line.split():
                case ["nameserver", address, *_]:
                    usable = usable or ":" not in address
                case ["search" | "domain" | "options", *_]:
                    kept.append(line.rstrip("\n"))
                case _:
                    pass
    text = "\n".join([f"nameserver {IPv4Network(cidr)[3]}", *kept]) + "\n"
    return text, None if usable else "no DNS in containers: the host's /etc/resolv.conf names no IPv4 nameserver"
