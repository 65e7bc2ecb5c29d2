"""What the launcher hands to the processes that become a container, and what they report back.

The launcher decides everything in a `Plan`; the intermediate process, init and the runner only carry it out. A plan
travels in a memfd, so that a template passes it on unread: no container's environment is ever in a template's memory.
"""

import zlib
from typing import NamedTuple

import msgspec

from farcall.spec.container import Bind, ContainerSpec, IdMap, Interpreter, Limits, TreeMount


class Plan(msgspec.Struct):
    """One container, with all that depends on this machine worked out."""

    spec: ContainerSpec
    area: str  # directory of the container on disk; its root file system is `area`/root
    area_made: bool  # it holds the skeleton already
    uid_map: IdMap
    gid_map: IdMap
    cgroup_v1: list[str]  # directories
    cgroup_v2: str | None  # directory
    seccomp: bytes
    resolv_conf: str
    hosts: str
    has_idmap: bool  # PlanFds carries a user namespace with the maps above, for idmapped mounts
    own_userns: bool  # the launcher is in a user namespace of its own: overlays keep their marks in user attributes
    has_netns: bool  # PlanFds carries a network namespace to join; otherwise a fresh one, loopback only
    data_limit: int | None  # bytes, RLIMIT_DATA of the runner: stands in for a memory cgroup
    process_limit: int | None  # RLIMIT_NPROC of the runner: stands in for a pids cgroup
    file_limit: int | None  # bytes, RLIMIT_FSIZE of the runner
    open_files: tuple[int, int]  # RLIMIT_NOFILE of the runner
    lazy: dict[str, str]  # folders of objects that may lack some, and where those are found that they lack


class PlanFds(NamedTuple):
    """The descriptors that go with a plan, in the order they are sent."""

    status: int  # SEQPACKET socket to the launcher: reports out, orders in, end of file when the launcher dies
    control: int
    stdout: int
    stderr: int
    page: int
    lifeline: int
    plan: int  # memfd with the encoded Plan; -1 in a fork of the launcher, which has the plan itself
    idmap: int | None
    netns: int | None


class Born(msgspec.Struct, tag=True):
    """Pid 1 exists. Carries its pidfd."""

    pid: int  # in the launcher's pid namespace


class Running(msgspec.Struct, tag=True):
    """The runner runs. `timeline` has points of CLOCK_MONOTONIC, in seconds, by step."""

    timeline: dict[str, float]
    notes: list[str]


class Broken(msgspec.Struct, tag=True):
    """The container could not be made: the step that failed, and the errno (0 where there is none)."""

    step: str
    errno: int
    message: str


class Ended(msgspec.Struct, tag=True):
    """The runner ended; exactly one of the two is set."""

    exit_code: int | None
    signal: int | None


class SendSignal(msgspec.Struct, tag=True):
    """From the launcher: send this signal to the runner."""

    signal: int


class StartExec(msgspec.Struct, tag=True):
    """From the launcher: start a command. Carries its three standard streams; none where it gets a terminal, of
    (rows, columns)."""

    exec_id: int
    command: list[str]
    environment: dict[str, str]  # over the container's
    workdir: str  # "": the container's
    terminal: tuple[int, int] | None


class SignalExec(msgspec.Struct, tag=True):
    """From the launcher: send this signal to a command's process group."""

    exec_id: int
    signal: int


class ExecStarted(msgspec.Struct, tag=True):
    """The command is started, or could not be, for `error`. Carries the controlling end of its terminal, if it has
    one."""

    exec_id: int
    error: str


class ExecEnded(msgspec.Struct, tag=True):
    """The command ended; exactly one of the two is set."""

    exec_id: int
    exit_code: int | None
    signal: int | None


def fingerprint() -> bytes:
    """Of all that a plan is made of: launcher and template understand each other when theirs are equal. A launcher may
    meet a runner directory of a farcall installed before or after its own."""
    kinds: list[type[msgspec.Struct]] = [
        Plan,
        ContainerSpec,
        Bind,
        Interpreter,
        Limits,
        TreeMount,
        Born,
        Running,
        Broken,
        Ended,
        SendSignal,
        StartExec,
        SignalExec,
        ExecStarted,
        ExecEnded,
    ]
    fields = [(kind.__name__, kind.__struct_fields__) for kind in kinds]
    return b"%08x" % zlib.crc32(repr((fields, PlanFds._fields)).encode())


Report = Born | Running | Broken | Ended | ExecStarted | ExecEnded
Order = SendSignal | StartExec | SignalExec

encode = msgspec.msgpack.encode
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)
decode_report = _report_decoder.decode
decode_plan = msgspec.msgpack.Decoder(Plan).decode
_order_decoder: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
decode_order = _order_decoder.decode
