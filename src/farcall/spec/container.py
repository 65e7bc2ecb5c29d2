"""What one container is made of: the request that the worker sends to the launcher."""

from typing import Literal

import msgspec

Runtime = Literal["native", "process"]


class Bind(msgspec.Struct, frozen=True):
    """A file or directory of the host that the container sees at `target`.

    `optional` binds are left out silently where `source` does not exist.
    """

    source: str
    target: str
    read_only: bool = True
    optional: bool = False


class Limits(msgspec.Struct, frozen=True):
    """What the kernel enforces on one container. `None` means no limit of its own."""

    cpu_request: float = 0.125  # cores; becomes a share
    cpu_limit: float | None = None  # cores; becomes a quota
    memory_request: int = 128  # MiB
    memory_limit: int | None = None  # MiB
    pids: int = 4096
    disk: int = 16 * 1024  # MiB of the writable area


class Interpreter(msgspec.Struct, frozen=True):
    """A Python that runs user code, as probed on the host.

    `paths` are all host directories that must be visible at the same path for it to work: prefixes, `sys.path` entries,
    targets of editable installs. `runner_path` is the private directory that holds `farcall` and what it imports,
    built for this interpreter's version, libc and architecture.
    """

    executable: str
    version: str  # "3.11.7"
    tag: str  # "cp311-linux_x86_64-gnu"
    paths: tuple[str, ...]
    runner_path: str


class TreeMount(msgspec.Struct, frozen=True):
    """A tree of the content store that is ready to be mounted. What containers see of it is read-only, or what a
    container writes to it, if it is `writable`, stays its own. Where `written_at` is a path, it can be written to only
    there, and `target` shows the same, read-only.

    It is a plain directory at `path`, or an EROFS image file there that holds names only, whose files are in the folder
    `objects`; with `is_lazy` some may be missing there, and are fetched when they are opened. `subpath` is the file or
    folder of the tree that is seen at `target`, "" its root. Files belong to whoever the container is to see; with
    `is_shifted`, to whoever that is on the host. Without `overlay`, where the machine has none, a root can be written
    to in a few places only.
    """

    kind: Literal["directory", "erofs"]
    path: str
    objects: str = ""
    target: str = "/"
    subpath: str = ""
    is_shifted: bool = False
    overlay: bool = True
    writable: bool = False
    written_at: str = ""
    is_lazy: bool = False


IdMap = tuple[tuple[int, int, int], ...]  # (first id inside, first id outside, count), as in /proc/PID/uid_map


class MountMode(msgspec.Struct, frozen=True):
    """How trees are mounted on a machine, as its launcher has found by trying.

    With kind "directory" a tree is made a directory of hard links to files, which belong to the ids that `uid_map` and
    `gid_map` give for those of the tree, and to root's where they give none; empty maps change nothing. `is_shifted`
    says that these are the container's ids outside. Without `overlay` nothing can be mounted above a tree.
    `why` says what keeps this machine from the best way, and `remedy` what would help; both are "" where nothing does.
    Where `lazy`, trees can be mounted whose objects are not here; where not, these are fetched before, and `not_lazy`
    says why.
    """

    kind: Literal["directory", "erofs"]
    overlay: bool = True
    is_shifted: bool = False
    uid_map: IdMap = ()
    gid_map: IdMap = ()
    why: str = ""
    remedy: str = ""
    lazy: bool = False
    not_lazy: str = ""


class ContainerSpec(msgspec.Struct, frozen=True):
    """One container, complete: a launcher makes it from this and four file descriptors, knowing nothing else.

    Without `root` the container sees an allowlist of the host's system. With it, `root` is its file system, under a
    writable area; `interpreter` is then one of that file system's, with no paths of the host. `upper` is a
    directory of the caller's that takes what the container writes, as the overlay's upper/, and outlives it.
    With `command`, that runs in place of the runner, as `user`: a name or id[:group] of the container's own.
    `imports` is a file of paths (`content.imports`) that are looked up while its Python starts.
    """

    container_id: str  # "ta-..."
    interpreter: Interpreter | None
    limits: Limits
    binds: tuple[Bind, ...] = ()
    env: dict[str, str] = {}
    cwd: str = "/root"
    runtime: Runtime = "native"
    block_network: bool = False
    start: Literal["fork", "exec"] = "fork"
    root: TreeMount | None = None
    trees: tuple[TreeMount, ...] = ()
    upper: str = ""
    entrypoint: tuple[str, ...] = ()  # a program, with arguments, that is given the runner's command line to start
    command: tuple[str, ...] = ()
    user: str = ""
    imports: str = ""
