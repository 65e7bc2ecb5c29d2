"""A job's process: one request on standard input, words on standard output; see `requests`.

It runs beside the server, so that hashing, unpacking and waiting for other machines never hold up a call.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import msgspec

from farcall import errors
from farcall.builder import requests
from farcall.builder.progress import PROGRESS
from farcall.builder.requests import AddedPython, State
from farcall.content.lease import Lease
from farcall.content.store import Store
from farcall.content.tree import Diff, Entry, Tree
from farcall.launcher import namespaces, syscalls

# What installers make gets this time (2020-01-01), so that the same packages are the same files.
CLAMPED_NS = 1_577_836_800 * 10**9

CONTENT_SHARE = 0.2  # of the disk: images beyond it, the least recently used first, make room after a build

_BACKGROUND = 10  # of 19: what nobody waits for gets the processors that are left

Say = Callable[[str], None]


def main() -> None:
    """Carries out the request on standard input."""
    _end_with_parent()
    request = requests.decode_request(sys.stdin.buffer.read())
    # What libraries and child processes print must not be taken for words.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def tell(word: requests.Said | requests.Failed | requests.Finished) -> None:
        out.write(requests.encode_word(word) + b"\n")
        out.flush()

    try:
        if request.launcher:
            namespaces.join(request.launcher)
        with Store(Path(request.store)).join_lease(request.lease) as lease:
            result = _carry_out(request, lease, lambda text: tell(requests.Said(text)))
    except errors.FarcallError as error:
        tell(requests.Failed(error.code, str(error)))
    except BrokenPipeError:
        sys.exit(1)  # the server is gone
    else:
        tell(requests.Finished(msgspec.to_builtins(result)))


def _end_with_parent() -> None:
    """A server that is killed leaves no job behind, and a job that ends none of its own programs."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)  # a job leads a session of its own
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    parent = os.getppid()
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)


def _carry_out(request: requests.Request, lease: Lease, say: Say) -> Any:
    match request:
        case requests.Bootstrap():
            return _bootstrap(lease, say)
        case requests.Pull():
            return _pull(lease, request, say)
        case requests.AddPython():
            return _add_python(lease, request, say)
        case requests.Commit():
            return _commit(lease, request)
        case requests.CopyTree():
            return _copy(lease, request)
        case requests.Fetch():
            return _fetch(lease, request, say)
        case requests.FetchTrees():
            return _fetch_trees(lease, request, say)
        case requests.Push():
            return _push(lease, request, say)
        case requests.Remove():
            return _remove(request)
        case requests.Tidy():
            return _tidy(lease)


def _bootstrap(lease: Lease, say: Say) -> str:
    from farcall.builder.debian import bootstrap
    from farcall.content.layers import read_layer

    def take(stream: IO[bytes]) -> str:
        return lease.add_tree(Tree.of(()).merge(read_layer(lease, stream)))

    return bootstrap(take, say, lease.scratch)


def _pull(lease: Lease, request: requests.Pull, say: Say) -> State:
    from farcall.builder.oci.endpoint import Access
    from farcall.builder.oci.pull import pull

    done: dict[str, tuple[int, int]] = {}

    def progress(digest: str, there: int, size: int) -> None:
        done[digest] = there, size
        there, size = (sum(values) for values in zip(*done.values(), strict=True))
        say(f"{PROGRESS}{there / 2**20:.0f} of {size / 2**20:.0f} MiB")

    access = Access(request.registry, request.insecure)
    credentials = request.credentials or None
    pulled = pull(lease, request.reference, credentials=credentials, access=access, progress=progress)
    return State(pulled.tree_id, pulled.config)


def _fetch_trees(lease: Lease, request: requests.FetchTrees, say: Say) -> None:
    from farcall.content.tiers import Fetcher
    from farcall.content.tiers.places import open_place

    there = 0

    def progress(size: int) -> None:
        nonlocal there
        there += size
        say(f"{PROGRESS}{there / 2**20:.0f} MiB")

    fetcher = Fetcher(lease.store, [open_place(request.place, request.endpoint)])
    for tree_id in request.trees:
        fetcher.fetch_tree(lease, tree_id, progress)


def _push(lease: Lease, request: requests.Push, say: Say) -> int:
    from farcall.builder.pushing import push
    from farcall.content.tiers.places import open_place

    os.nice(_BACKGROUND)
    return push(lease.store, open_place(request.place, request.endpoint), say)


def _add_python(lease: Lease, request: requests.AddPython, say: Say) -> AddedPython:
    from farcall.builder import pythons
    from farcall.content.ingest import ingest_directory

    found = pythons.find(request.version, os.environ)
    if found is None:
        found = pythons.fetch(request.version, Path(request.downloads), say)
    if found is None:
        raise pythons.unavailable(request.version, os.environ, request.own)
    say(f"Python {found.version} from {found.prefix}")
    copied = ingest_directory(lease, found.prefix, ignore=lambda path: pythons.leaves_out(os.fsencode(path)))
    prefix = os.fsencode(found.prefix).lstrip(b"/")
    base = lease.store.tree(request.base)
    tree = base.merge(Diff([entry for entry in lease.store.tree(copied).under(prefix) if _is_new(base, entry, prefix)]))
    links = [
        Entry(b"usr/local/bin/" + name, 0o120777, target=b"/" + prefix + b"/bin/python" + found.minor.encode())
        for name in (b"python", b"python3", b"python" + found.minor.encode())
    ]
    tree_id = lease.add_tree(tree.merge(Diff(links)))
    return AddedPython(tree_id, f"{found.prefix}/bin/python{found.minor}", found.version)


def _is_new(base: Tree, entry: Entry, prefix: bytes) -> bool:
    """The folders above a prefix stay as they are where the base has them."""
    return entry.path.startswith(prefix) or entry.path not in base


def _commit(lease: Lease, request: requests.Commit) -> str:
    from farcall.content.upper import ingest_upper

    uid_map, gid_map = namespaces.id_maps()
    tree = ingest_upper(
        lease,
        Path(request.upper, "upper"),
        lease.store.tree(request.base),
        uid_map=uid_map,
        gid_map=gid_map,
        clamp_mtime_after=CLAMPED_NS if request.clamp else None,
    )
    return tree.id


def _remove(request: requests.Remove) -> bool:
    import shutil

    # overlayfs leaves a folder of mode 0 behind, which nobody but an administrator can look into.
    for folder, names, _ in os.walk(request.folder):
        for name in names:
            with contextlib.suppress(OSError):
                os.chmod(os.path.join(folder, name), 0o700, follow_symlinks=False)
    shutil.rmtree(request.folder, ignore_errors=True)
    return not os.path.exists(request.folder)


def _tidy(lease: Lease) -> int:
    import shutil

    from farcall.content.gc import collect

    lease.store.sync()
    return collect(lease.store, int(shutil.disk_usage(lease.store.root).total * CONTENT_SHARE)).freed_bytes


def _copy(lease: Lease, request: requests.CopyTree) -> str:
    from farcall.builder.copying import apply_copy

    source = lease.store.tree(request.source) if request.source else None
    base = lease.store.tree(request.base)
    return lease.add_tree(apply_copy(lease, base, source, request.step, request.workdir, keep_owner=request.keep_owner))


def _fetch(lease: Lease, request: requests.Fetch, say: Say) -> str:
    from farcall.builder.downloads import download

    return lease.add_tree(download(lease, lease.store.tree(request.base), request.step, request.workdir, say))
