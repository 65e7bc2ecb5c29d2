"""rtnetlink, as much of it as a container's network needs: links, addresses, IPv4 routes (see rtnetlink(7)).

A `Netlink` acts on the network namespace in which it was made, whichever its process enters afterwards.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network
from typing import Self

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_CREATE = 0x100, 0x400
NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 2, 3, 4
RTM_NEWLINK, RTM_NEWROUTE, RTM_GETROUTE = 16, 24, 26
RTN_LOCAL, RTN_PROHIBIT = 2, 8
RTPROT_STATIC, RT_SCOPE_UNIVERSE = 4, 0
RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
RTA_DST, RTA_TABLE = 1, 15
IFF_UP = 1
RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x10, 0x100

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, prefixes to and from, tos, table, protocol, scope, type, flags
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_BATCH = 64  # requests in one datagram; their acknowledgements fit the default receive buffer


def attribute(kind: int, value: bytes) -> bytes:
    """One rtnetlink attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


class Netlink:
    """A blocking rtnetlink socket. Every refusal of the kernel is raised as OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, kind: int, flags: int, payloads: Iterable[bytes]) -> None:
        """Sends one request of this kind for each payload, and returns when the kernel has done them all.

        The first refusal is raised after the rest of its batch has been answered.
        """
        waiting = list(payloads)
        while waiting:
            batch, waiting = waiting[:_BATCH], waiting[_BATCH:]
            self._socket.send(b"".join(self._message(kind, flags | NLM_F_ACK, payload) for payload in batch))
            refused: int = 0
            answers = 0
            while answers < len(batch):
                for answer, body in self._receive():
                    if answer == NLMSG_ERROR:
                        answers += 1
                        refused = refused or -struct.unpack_from("=i", body)[0]
            if refused:
                raise OSError(refused, f"rtnetlink request {kind}: {os.strerror(refused)}")

    def link_up(self, name: str) -> None:
        """Brings the interface `name` up."""
        link = _LINK.pack(socket.AF_UNSPEC, 0, socket.if_nametoindex(name), IFF_UP, IFF_UP)
        self.request(RTM_NEWLINK, 0, [link])

    def prohibit(self, networks: Iterable[IPv4Network]) -> None:
        """Refuses all traffic to these networks: connecting fails at once with EACCES."""
        routes: list[bytes] = []
        for network in networks:
            route = (socket.AF_INET, network.prefixlen, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE)
            routes.append(_ROUTE.pack(*route, RTN_PROHIBIT, 0) + attribute(RTA_DST, network.network_address.packed))
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, routes)

    def local_networks(self) -> set[IPv4Network]:
        """Every IPv4 address this namespace answers to, as networks: its interfaces' own and those routed to itself."""
        return {network for network, kind in self._routes(RT_TABLE_LOCAL) if kind == RTN_LOCAL}

    def routed_networks(self) -> set[IPv4Network]:
        """Every IPv4 network that the main table routes, the default route apart."""
        return {network for network, _ in self._routes(RT_TABLE_MAIN) if network.prefixlen > 0}

    def _routes(self, table: int) -> Iterator[tuple[IPv4Network, int]]:
        body = _ROUTE.pack(socket.AF_INET, 0, 0, 0, table, 0, 0, 0, 0)
        self._socket.send(self._message(RTM_GETROUTE, NLM_F_DUMP, body))
        while True:
            for answer, data in self._receive():
                if answer == NLMSG_DONE:
                    return
                if answer == NLMSG_ERROR:
                    number = -struct.unpack_from("=i", data)[0]
                    raise OSError(number, f"rtnetlink dump of routes: {os.strerror(number)}")
                if answer != RTM_NEWROUTE:
                    continue
                _, prefix, _, _, found, _, _, kind, _ = _ROUTE.unpack_from(data)
                attributes = dict(_attributes(data[_ROUTE.size :]))
                if RTA_TABLE in attributes:
                    found = struct.unpack("=I", attributes[RTA_TABLE])[0]
                if found == table:
                    address = socket.inet_ntoa(attributes.get(RTA_DST, bytes(4)))
                    yield IPv4Network(f"{address}/{prefix}", strict=False), kind

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        body += b"\0" * (-len(body) % 4)
        return _HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, self._sequence, 0) + body

    def _receive(self) -> Iterator[tuple[int, bytes]]:
        data = self._socket.recv(1 << 17)
        while len(data) >= _HEADER.size:
            length, kind, _, _, _ = _HEADER.unpack_from(data)
            if kind == NLMSG_OVERRUN or length < _HEADER.size:
                raise OSError(errno.ENOBUFS, "rtnetlink: answers were lost")
            yield kind, data[_HEADER.size : length]
            data = data[(length + 3) & ~3 :]


class AddressWatch:
    """Says whether the addresses of the namespace it was made in have changed. Never blocks; `fileno` may be polled."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))

    def fileno(self) -> int:
        return self._socket.fileno()

    def changed(self) -> bool:
        """Whether an address came or went since the last time this was asked."""
        seen = False
        while True:
            try:
                self._socket.recv(1 << 16)
            except BlockingIOError:
                return seen
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # lost notifications are changes too
                    raise
            seen = True

    def close(self) -> None:
        self._socket.close()
