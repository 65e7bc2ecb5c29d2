"""Where a registry is asked, and over what."""

from collections.abc import Collection
from ipaddress import ip_address
from typing import NamedTuple

from farcall.builder.oci.reference import DOCKER_IO, Reference
from farcall.errors import InvalidError

_DOCKER_IO_HOST = "registry-1.docker.io"


class Access(NamedTuple):
    """How this user's machine reaches registries: the settings `registry` and `insecure_registries`.

    `docker_io` is what stands in for docker.io: host[:port][/prefix], a mirror or a cache of it. `insecure` are hosts
    (host[:port]) that may be asked over http, besides those of this machine itself.
    """

    docker_io: str = DOCKER_IO
    insecure: tuple[str, ...] = ()


DIRECTLY = Access()


class Endpoint(NamedTuple):
    """A registry's host[:port], and the repository's name there."""

    host: str
    repository: str
    may_be_http: bool
    is_mirror: bool = False


def endpoint_of(reference: Reference, access: Access, *, with_mirror: bool = True) -> Endpoint:
    """Where `reference` is fetched from. Raises InvalidError for a setting `registry` that is none."""
    host, repository, is_mirror = reference.registry, reference.repository, False
    if host == DOCKER_IO:
        host, slash, prefix = access.docker_io.strip("/").partition("/")
        if "://" in access.docker_io or not host:
            raise InvalidError(
                f"the setting registry is {access.docker_io!r}: it is a host or host:port, with a path where there is "
                "one, and no URL"
            )
        is_mirror = host != DOCKER_IO and with_mirror
        if is_mirror:
            repository = prefix + slash + repository
        else:
            host = _DOCKER_IO_HOST
    return Endpoint(host, repository, may_be_http(host, access.insecure), is_mirror)


def may_be_http(host: str, insecure: Collection[str]) -> bool:
    """Whether `host` (with its port, if any) may be asked without TLS."""
    return is_loopback(host) or host in insecure or without_port(host) in insecure


def is_loopback(host: str) -> bool:
    """Whether `host` (with its port, if any) is this machine itself."""
    name = without_port(host)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def without_port(host: str) -> str:
    """`host` without its port, and an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
