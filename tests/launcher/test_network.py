"""Containers' networks against a real outside: a host and a remote machine, played by network namespaces.

Each test runs in a forked child that is the host: its own network namespace (198.51.100.1, and what a host has on its
loopback), joined to the remote machine's (198.51.100.2, also 169.254.169.254). All of it goes with the child.
"""

import ctypes
import errno
import json
import os
import select
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from farcall.launcher.netlink import Netlink, attribute
from farcall.launcher.network import NetworkLease, NetworkPool

HOST, REMOTE, METADATA = "198.51.100.1", "198.51.100.2", "169.254.169.254"
PORT, DNS_PORT = 7000, 53
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_DELROUTE = 16, 20, 24, 25
CREATE = 0x600  # NLM_F_CREATE | NLM_F_EXCL
SECONDS = 60.0  # after which a child that hangs is ended

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def new_user_namespace(flags: int = 0) -> None:
    """Enters a user namespace where this process is root, though it is nobody outside of it."""
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", CLONE_NEWUSER | flags)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns (JSON) in a forked child; its failure fails the test."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            signal.alarm(int(SECONDS))
            said = json.dumps(work())
        except BaseException:
            status, said = 1, traceback.format_exc()
        os.write(writer, said.encode())
        os._exit(status)
    os.close(writer)
    with open(reader) as stream:
        said = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        pytest.fail(said or f"the child ended with {status}", pytrace=False)
    return json.loads(said)


def packed_link(name: str, *attributes: bytes) -> bytes:
    return struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, name.encode() + b"\0") + b"".join(attributes)


def add_veth(netlink: Netlink, name: str, peer: str, peer_pid: int) -> None:
    peer_link = packed_link(peer, attribute(19, struct.pack("=I", peer_pid)))
    kind = attribute(1, b"veth\0") + attribute(2, attribute(1, peer_link))
    netlink.request(RTM_NEWLINK, CREATE, [packed_link(name, attribute(18, kind))])


def add_address(netlink: Netlink, name: str, address: str, prefix: int) -> None:
    packed = socket.inet_aton(address)
    body = struct.pack("=BBBBi", socket.AF_INET, prefix, 0, 0, socket.if_nametoindex(name))
    netlink.request(RTM_NEWADDR, CREATE, [body + attribute(2, packed) + attribute(1, packed)])


def add_route(netlink: Netlink, address: str, name: str) -> None:
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 254, 4, 253, 1, 0)  # main, static, scope link, unicast
    body += attribute(1, socket.inet_aton(address)) + attribute(4, struct.pack("=i", socket.if_nametoindex(name)))
    netlink.request(RTM_NEWROUTE, CREATE, [body])


def listener(address: str, port: int) -> socket.socket:
    return socket.create_server((address, port), backlog=16)


def serve(tcp: list[socket.socket], dns: socket.socket | None, parent: int) -> None:
    """Answers connections with "hello", and each DNS question with the remote machine's address, until killed."""
    call("prctl", 1, signal.SIGKILL, 0, 0, 0)
    while os.getppid() == parent:
        readable, _, _ = select.select([*tcp, *([dns] if dns else [])], [], [], SECONDS)
        for ready in readable:
            if ready is dns:
                question, sender = dns.recvfrom(512)
                end = question.index(b"\0", 12) + 5
                answer = question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question[12:end]
                dns.sendto(answer + b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(REMOTE), sender)
            else:
                with ready.accept()[0] as connection:
                    connection.sendall(b"hello")


def be_remote(ready: int, parent: int) -> None:
    """The remote machine: waits for its end of the link, then serves."""
    call("unshare", CLONE_NEWNET)
    os.write(ready, b"1")
    while "remote0" not in {name for _, name in socket.if_nameindex()}:
        time.sleep(0.001)
    with Netlink() as netlink:
        netlink.link_up("lo")
        add_address(netlink, "remote0", REMOTE, 24)
        add_address(netlink, "remote0", METADATA, 32)
        netlink.link_up("remote0")
    tcp = [listener(REMOTE, PORT), listener(METADATA, PORT)]
    os.write(ready, b"2")
    serve(tcp, None, parent)


def fork_server(work: Callable[[], None]) -> None:
    if os.fork() == 0:
        with suppress(BaseException):
            work()
        traceback.print_exc()
        os._exit(1)


class Host(NamedTuple):
    """The host as its launcher sees it: a state directory, and an operator with the rights that the launcher lacks."""

    state: Path
    operator: socket.socket

    def add_address(self, address: str, prefix: int) -> None:
        self.operator.sendall(f"{address} {prefix}".encode())
        assert self.operator.recv(4) == b"done"


def be_operator(orders: socket.socket) -> None:
    while order := orders.recv(64):
        address, prefix = order.decode().split()
        with Netlink() as netlink:
            add_address(netlink, "host0", address, int(prefix))
        orders.sendall(b"done")
    os._exit(0)


def become_host(directory: Path) -> Host:
    """Makes this process the host, with a resolver on its loopback that only it can reach."""
    if os.geteuid() == 0:
        call("unshare", CLONE_NEWNS | CLONE_NEWNET)
    else:
        new_user_namespace(CLONE_NEWNS | CLONE_NEWNET)
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    (directory / "resolv.conf").write_text("nameserver 127.0.0.53\nsearch corp.example\n")
    call(
        "mount", bytes(directory / "resolv.conf"), os.fsencode(Path("/etc/resolv.conf").resolve()), None, MS_BIND, None
    )

    reader, writer = os.pipe()
    me = os.getpid()
    remote = os.fork()
    if remote == 0:
        try:
            be_remote(writer, me)
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"1"
    with Netlink() as netlink:
        netlink.link_up("lo")
        add_veth(netlink, "host0", "remote0", remote)
        add_address(netlink, "host0", HOST, 24)
        netlink.link_up("host0")
        add_route(netlink, METADATA, "host0")
    assert os.read(reader, 1) == b"2"
    own = [listener(HOST, PORT), listener("127.0.0.1", PORT)]
    dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    dns.bind(("127.0.0.53", DNS_PORT))
    fork_server(lambda: serve(own, dns, me))
    operator, theirs = socket.socketpair()

    def operate() -> None:
        operator.close()
        be_operator(theirs)

    fork_server(operate)
    theirs.close()
    return Host(directory, operator)


Test = Callable[[Host], None]


@pytest.fixture(params=["root", "rootless"])
def launcher(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Test], None]:
    """Runs a test as the launcher on a host that is made for it: as the host's root, and as root of a user namespace
    that does not own the host's network."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/net/tun")
    if os.geteuid() != 0 and request.param == "root":
        pytest.skip("needs host root: to be the launcher as root")

    def run(test: Test) -> None:
        def work() -> None:
            host = become_host(tmp_path)
            if request.param == "rootless":
                new_user_namespace()
            test(host)

        in_child(work)

    return run


def on_host(test: Callable[[Host], None]) -> Callable[..., None]:
    """Runs the test in the `launcher` fixture's host; it gets the `Host`."""

    def run(launcher: Callable[[Test], None]) -> None:
        launcher(test)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@contextmanager
def pool(state: Path, size: int = 0) -> Iterator[NetworkPool]:
    made = NetworkPool(state, rootless=os.geteuid() != 0, size=size)
    try:
        yield made
    finally:
        made.close()


def inside(lease: NetworkLease, work: Callable[[], Any]) -> Any:
    """What `work` returns in a container's place: in the namespace, without any capability over it."""

    def enter() -> Any:
        call("setns", lease.netns_fd, CLONE_NEWNET)
        new_user_namespace()
        return work()

    return in_child(enter)


def connect(address: str, port: int = PORT) -> str:
    """ "hello", or the name of the error that connecting gave."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(20)
        try:
            scope = (0, socket.if_nametoindex("eth0")) if address.startswith("fe80") else ()
            client.connect((address, port, *scope))
            return client.recv(16).decode()
        except TimeoutError:
            return "timed out"
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))


def resolve(nameserver: str) -> str:
    question = b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + b"\7example\3com\0" + b"\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.sendto(question, (nameserver, DNS_PORT))
        return socket.inet_ntoa(client.recv(512)[-4:])


def slirps() -> list[int]:
    """The slirp4netns processes of pools that this process and its relatives made; a test's host has no others."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                name = (entry / "cmdline").read_bytes().split(b"\0")[0]
                same_host = os.readlink(entry / "ns/net") == os.readlink("/proc/self/ns/net")
                if name.startswith(b"farcall-network") and same_host:
                    found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


@on_host
def test_reaches_the_outside_at_once(host: Host) -> None:
    with pool(host.state) as networks:
        lease = networks.take(blocked=False)
        assert lease.note is None
        assert inside(lease, lambda: connect(REMOTE)) == "hello"


@on_host
def test_never_reaches_the_host(host: Host) -> None:
    assert connect(HOST) == connect("127.0.0.1") == "hello"
    with pool(host.state) as networks:
        lease = networks.take(blocked=False)
        assert inside(lease, lambda: connect(HOST)) == "EACCES"
        assert inside(lease, lambda: connect("127.0.0.1")) == "ECONNREFUSED"  # its own loopback
        for address in ("10.0.2.2", "10.0.2.3", "0.0.0.0", "255.255.255.255"):
            assert inside(lease, lambda address=address: connect(address)) != "hello"


@on_host
def test_never_reaches_link_local_addresses(host: Host) -> None:
    assert connect(METADATA) == "hello"
    with pool(host.state) as networks:
        lease = networks.take(blocked=False)
        assert inside(lease, lambda: connect(METADATA)) == "EACCES"
        assert inside(lease, lambda: connect("fe80::1")) in ("ENETUNREACH", "EADDRNOTAVAIL")


@on_host
def test_never_reaches_another_container(host: Host) -> None:
    with pool(host.state) as networks:
        one, other = networks.take(blocked=False), networks.take(blocked=False)
        reader, writer = os.pipe()

        def listen() -> None:
            call("setns", one.netns_fd, CLONE_NEWNET)
            new_user_namespace()
            sockets = [listener("0.0.0.0", PORT)]
            os.write(writer, b"1")
            serve(sockets, None, me)

        me = os.getpid()
        fork_server(listen)
        assert os.read(reader, 1) == b"1"
        assert inside(one, lambda: connect("10.0.2.100")) == "hello"
        assert inside(other, lambda: connect("10.0.2.100")) == "ECONNREFUSED"


@on_host
def test_a_container_cannot_change_its_routes(host: Host) -> None:
    with pool(host.state) as networks:
        lease = networks.take(blocked=False)

        def remove() -> str:
            route = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 254, 0, 0, 0, 0)
            with Netlink() as netlink:
                try:
                    netlink.request(RTM_DELROUTE, 0, [route + attribute(1, socket.inet_aton(HOST))])
                except PermissionError:
                    return "refused"
            return "removed"

        assert inside(lease, remove) == "refused"


@on_host
def test_an_address_that_the_host_gets_later_is_refused(host: Host) -> None:
    late = "203.0.113.5"
    with pool(host.state, size=1) as networks:
        before = networks.take(blocked=False)
        networks.refill()
        host.add_address(late, 24)
        networks.refill()
        assert inside(before, lambda: connect(late)) == "EACCES"
        assert inside(networks.take(blocked=False), lambda: connect(late)) == "EACCES"


@on_host
def test_dns_works_through_a_resolver_on_the_hosts_loopback(host: Host) -> None:
    with pool(host.state) as networks:
        lease = networks.take(blocked=False)
        nameserver, search = lease.resolv_conf.splitlines()
        assert search == "search corp.example"
        assert inside(lease, lambda: resolve(nameserver.split()[1])) == REMOTE


@on_host
def test_its_network_stays_clear_of_the_hosts(host: Host) -> None:
    host.add_address("10.0.2.15", 24)
    with pool(host.state) as networks:
        lease = networks.take(blocked=False)
        assert "nameserver 10.0.2." not in lease.resolv_conf
        assert inside(lease, lambda: connect("10.0.2.15")) == "EACCES"
        assert inside(lease, lambda: connect(REMOTE)) == "hello"


@on_host
def test_a_server_may_bind_any_port(host: Host) -> None:
    with pool(host.state) as networks:
        lease = networks.take(blocked=False)
        assert inside(lease, lambda: listener("0.0.0.0", 80).getsockname()[1]) == 80


@on_host
def test_blocked_has_nothing(host: Host) -> None:
    with pool(host.state) as networks:
        lease = networks.take(blocked=True)
        assert (lease.netns_fd, lease.note) == (None, None)
        assert "nameserver" not in lease.resolv_conf
        assert slirps() == []


@on_host
def test_the_pool_fills_after_the_first_use_and_serves_from_stock(host: Host) -> None:
    with pool(host.state, size=2) as networks:
        networks.refill()
        assert slirps() == []
        first = networks.take(blocked=False)

        wait_until(lambda: not networks.refill())
        assert networks.spare == 2
        before = slirps()
        assert len(before) == 3
        leases = [first, networks.take(blocked=False), networks.take(blocked=False)]
        assert slirps() == before
        assert [inside(lease, lambda: connect(REMOTE)) for lease in leases] == ["hello"] * 3


@on_host
def test_prepare_makes_the_first_take_warm(host: Host) -> None:
    with pool(host.state, size=1) as networks:
        networks.prepare()
        wait_until(lambda: not networks.refill() and networks.spare == 1)
        before = slirps()
        assert inside(networks.take(blocked=False), lambda: connect(REMOTE)) == "hello"
        assert slirps() == before


@on_host
def test_nothing_stays_behind(host: Host) -> None:
    descriptors = set(os.listdir("/proc/self/fd"))
    with pool(host.state, size=2) as networks:
        lease = networks.take(blocked=False)
        networks.refill()
        networks.give_back(lease)
        wait_until(lambda: not networks.refill() and networks.spare == 2 and len(slirps()) == 2)
    assert slirps() == []
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert not (host.state / "network").exists()


@on_host
def test_a_killed_launcher_takes_its_processes_along(host: Host) -> None:
    reader, writer = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        networks = NetworkPool(host.state, rootless=False, size=1)
        networks.take(blocked=False)
        networks.refill()
        os.write(writer, b"1")
        signal.pause()
    assert os.read(reader, 1) == b"1"
    assert slirps()
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    wait_until(lambda: slirps() == [])
    with pool(host.state) as networks:
        networks.sweep()
        assert not (host.state / "network").exists()


@on_host
def test_sweep_ends_what_a_launcher_left_and_nothing_else(host: Host) -> None:
    other = host.state / "other"
    left: dict[Path, int] = {}
    for state in (host.state, other):
        state.mkdir(exist_ok=True)
        (state / "network").write_text("1\n")
        left[state] = os.posix_spawn("/bin/sleep", [f"farcall-network {state}", "60"], {})
    with pool(host.state) as networks:
        networks.sweep()
        assert os.waitstatus_to_exitcode(os.waitpid(left[host.state], 0)[1]) == -signal.SIGKILL
        assert os.waitpid(left[other], os.WNOHANG) == (0, 0)
        os.kill(left[other], signal.SIGKILL)
        os.waitpid(left[other], 0)


@on_host
def test_a_slirp4netns_that_dies_is_replaced_under_the_running_container(host: Host) -> None:
    with pool(host.state) as networks:
        lease = networks.take(blocked=False)
        for pid in slirps():
            os.kill(pid, signal.SIGKILL)

        def back() -> bool:
            networks.refill()
            return inside(lease, lambda: connect(REMOTE)) == "hello"

        wait_until(back)
        assert inside(lease, lambda: connect(HOST)) == "EACCES"


@on_host
def test_without_slirp4netns_there_is_no_network_and_the_lease_says_what_to_install(host: Host) -> None:
    nothing = host.state / "empty"
    nothing.touch(mode=0o600)
    for directory in ("/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"):
        if (binary := Path(directory) / "slirp4netns").exists():
            call("unshare", CLONE_NEWNS)
            call("mount", bytes(nothing), bytes(binary), None, MS_BIND, None)
    with pool(host.state) as networks:
        lease = networks.take(blocked=False)
        assert lease.netns_fd is None
        assert lease.note is not None
        assert "apt install slirp4netns" in lease.note
        assert f"on {os.uname().nodename}:" in lease.note, "on which of several machines"
