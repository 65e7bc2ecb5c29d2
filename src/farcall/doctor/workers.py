"""Workers: those that have joined the server here, and this machine as one. Nothing where it is neither."""

import fcntl
import os
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from farcall import errors, settings
from farcall.doctor.finding import Finding, Status
from farcall.settings import flags

if TYPE_CHECKING:
    from farcall.wire.workers import WorkerListing

SKEW_SECONDS = 5.0  # that a worker's clock may differ before it is named
RENEW_DAYS = 30  # that a certificate is still good for, below which it is named
_GROUP = "workers"
_PURPOSE = "functions on other machines"


def probe() -> list[Finding]:
    """The server's keys and each of its workers; who this machine is to another server."""
    state = settings.paths().made_state
    if state is None:
        return []
    findings: list[Finding] = []
    if (state / "cluster" / "ca.pem").exists():
        findings += _of_server(state / "cluster")
    if (state / "worker" / "worker.json").exists():
        findings.append(_as_worker(state / "worker"))
    return findings


def _of_server(directory: Path) -> list[Finding]:
    chosen = settings.load()
    until = min(_good_until(directory / name) for name in ("ca.pem", "server.pem"))
    detail = f"a worker's lease is {chosen.worker_lease:g} s; the certificates are good until {until:%Y-%m-%d}"
    status, remedy = _validity(until, "remove the server's `cluster` directory, and have its workers join again")
    if by_flag := flags.given(directory.parent).get("FARCALL_LISTEN", ""):
        detail = f"listens at {by_flag}, as `farcall server start` was told; {detail}"
    elif chosen.listen:
        detail = f"set to listen at {chosen.listen}; {detail}"
    return [Finding(_GROUP, "workers' port", status, _PURPOSE, detail, remedy), *_joined()]


def _joined() -> list[Finding]:
    from farcall.sdk import client
    from farcall.wire.workers import ListWorkers, WorkerListing

    if client.server_url():
        return []  # another server's: its own doctor knows
    try:
        running = client.connect_existing()
        if running is None:
            return []
        with closing(running):
            answer, _ = running.request(ListWorkers)
    except errors.FarcallError as error:
        return [Finding(_GROUP, "joined workers", "limited", _PURPOSE, str(error).partition("\n")[0])]
    listed = msgspec.msgpack.decode(answer.body, type=list[WorkerListing])
    return [_worker(one) for one in listed if one.state != "local"]


def _worker(one: "WorkerListing") -> Finding:
    name = f"worker {one.name}"
    if not one.version:
        return Finding(_GROUP, name, "limited", _PURPOSE, one.state, "start `farcall worker join` there")
    detail = f"{one.state}, at {one.address}, farcall {one.version}, its clock {one.clock_offset:+.1f} s off"
    if one.state == "silent":
        return Finding(_GROUP, name, "limited", _PURPOSE, detail)
    if abs(one.clock_offset) > SKEW_SECONDS:
        return Finding(_GROUP, name, "limited", _PURPOSE, detail, "set its clock, as by `timedatectl set-ntp true`")
    return Finding(_GROUP, name, "ok", _PURPOSE, detail)


def _as_worker(directory: Path) -> Finding:
    name = "this machine as a worker"
    try:
        who = msgspec.json.decode((directory / "worker.json").read_bytes(), type=dict[str, str])
        until = _good_until(directory / "worker.pem")
    except (OSError, ValueError, msgspec.DecodeError) as error:
        remedy = "join again with a new token: farcall worker join --token-file FILE"
        return Finding(_GROUP, name, "limited", _PURPOSE, f"{directory} cannot be read: {error}", remedy)
    detail = f"{who['name']} of {who['address']}; its certificate is good until {until:%Y-%m-%d}"
    status, remedy = _validity(until, "farcall worker join --token-file FILE")
    if not remedy and not _is_held(directory / "lock"):
        status, remedy = "limited", "farcall worker join"
        detail += "; it does not run"
    return Finding(_GROUP, name, status, _PURPOSE, detail, remedy)


def _validity(until: datetime, remedy: str) -> tuple[Status, str]:
    return ("limited", remedy) if until - datetime.now(UTC) < timedelta(days=RENEW_DAYS) else ("ok", "")


def _good_until(certificate: Path) -> datetime:
    from cryptography import x509

    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc


def _is_held(path: Path) -> bool:
    """Whether a process has that lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
