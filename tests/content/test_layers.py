"""Archives as layers: what GNU tar and Python's tarfile write, what OCI's format says, what is damaged or hostile."""

import gzip
import hashlib
import io
import os
import random
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import zstandard

from farcall.content import Diff, Entry, Lease, Store, Tree
from farcall.content.ingest import ingest_directory
from farcall.content.layers import read_layer
from farcall.errors import ContentError, CorruptedError, FarcallError, ResourceExhaustedError

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "gzip, two members": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]) + bytes(100),
    "zstd": zstandard.compress,
    "zstd, two frames": lambda data: zstandard.compress(data[:700]) + zstandard.compress(data[700:]),
}


class Archive:
    """Writes archives member by member."""

    def __init__(self, format_: int = tarfile.PAX_FORMAT) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=format_)

    def add(self, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> "Archive":
        info = tarfile.TarInfo(name)
        info.type, info.size, info.mode = kind, len(data), 0o755 if kind == tarfile.DIRTYPE else 0o644
        for field, value in fields.items():
            setattr(info, field, value)
        self._tar.addfile(info, io.BytesIO(data))
        return self

    def directory(self, name: str, **fields: object) -> "Archive":
        return self.add(name, kind=tarfile.DIRTYPE, **fields)

    def symlink(self, name: str, target: str) -> "Archive":
        return self.add(name, kind=tarfile.SYMTYPE, linkname=target)

    def link(self, name: str, target: str) -> "Archive":
        return self.add(name, kind=tarfile.LNKTYPE, linkname=target)

    def finish(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()


class Dribble:
    """A stream that gives less than it is asked for, as sockets do."""

    def __init__(self, data: bytes, rng: random.Random) -> None:
        self._stream = io.BytesIO(data)
        self._rng = rng

    def read(self, size: int, /) -> bytes:
        return self._stream.read(min(size, self._rng.choice([1, 100, 512, 10_000])))


def read(lease: Lease, data: bytes, base: Tree | None = None) -> Diff:
    return read_layer(lease, io.BytesIO(data), base)


def merged(lease: Lease, data: bytes, base: Tree | None = None) -> Tree:
    base = base if base is not None else Tree.of([])
    tree = base.merge(read(lease, data, base))
    lease.add_tree(tree)
    return tree


def file(path: str, data: bytes = b"x") -> Entry:
    digest = hashlib.sha256(data).digest() if data else b""
    return Entry(path.encode(), stat.S_IFREG | 0o644, size=len(data), digest=digest)


def paths(tree: Tree) -> list[str]:
    return [os.fsdecode(entry.path) for entry in tree]


def contents(lease: Lease, tree: Tree) -> dict[str, bytes]:
    return {os.fsdecode(entry.path): lease.store.read(entry.digest) for entry in tree if entry.is_regular}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_what_an_archive_says(lease: Lease, rng: random.Random, compression: str, format_: int) -> None:
    long = "/".join(["directory" * 5] * 4) + "/file"  # more than a header's 100 bytes, less than ustar's 255
    big = rng.randbytes(300_000)
    archive = Archive(format_).directory("./", mode=0o711).directory("etc/").add("./etc/passwd", b"root")
    archive.add(long, b"long").add("big", big, uid=1000, gid=2**21 - 1, mode=0o4755, mtime=1_700_000_000)
    archive.add("empty").symlink("link", "/etc/../x").link("hard", "etc/passwd").add("fifo", kind=tarfile.FIFOTYPE)
    data = COMPRESSIONS[compression](archive.finish())
    stream = Dribble(data, rng)
    tree = Tree.of([]).merge(read_layer(lease, stream))
    assert stream.read(1) == b"", "the stream is read to its end, for whoever hashes it"
    assert contents(lease, tree) == {"etc/passwd": b"root", "hard": b"root", long: b"long", "big": big, "empty": b""}
    entry = tree.get(b"big")
    assert entry == Entry(
        b"big", stat.S_IFREG | 0o4755, 1000, 2**21 - 1, 1_700_000_000 * 10**9, 300_000, hashlib.sha256(big).digest()
    )
    assert tree.entries[0].mode == stat.S_IFDIR | 0o711
    assert {entry.path: entry.target for entry in tree if entry.is_symlink} == {b"link": b"/etc/../x"}
    assert [entry.path for entry in tree if entry.link == 1] == [b"etc/passwd", b"hard"]
    assert (fifo := tree.get(b"fifo")) is not None and stat.S_ISFIFO(fifo.mode)


@pytest.mark.parametrize("format_", ["gnu", "pax", "ustar", "oldgnu", "v7", "sparse 0.0", "sparse 0.1", "sparse 1.0"])
def test_what_gnu_tar_writes(store: Store, lease: Lease, tmp_path: Path, rng: random.Random, format_: str) -> None:
    source = tmp_path / "source"
    (source / "some" / "directory").mkdir(parents=True, mode=0o750)
    (source / "small").write_bytes(rng.randbytes(1000))
    (source / "large").write_bytes(rng.randbytes(400_000))
    (source / "some" / "link").symlink_to("../small")
    os.link(source / "small", source / "some" / "directory" / "hard")
    with (source / "sparse").open("wb") as stream:
        for place in range(60):  # more extents than a header holds
            stream.seek(place * 100_000)
            stream.write(b"data%d" % place)
        stream.truncate(9_000_000)
    if format_ not in ("v7", "ustar"):
        with open(os.fsencode(source) + b"/caf\xe9" + b"n" * 150, "wb") as stream:
            stream.write(b"latin")
    is_exact = format_ == "pax" or format_.startswith("sparse")
    for path in [source, *source.rglob("*")]:
        os.utime(
            path,
            ns=(0, rng.randrange(10**18) // (1 if is_exact else 10**9) * (1 if is_exact else 10**9)),
            follow_symlinks=False,
        )
    if is_exact:
        os.setxattr(source / "large", "user.note", b"\0=\n")
    options = [f"--format={format_}", "--sparse"]
    if format_.startswith("sparse"):
        options = ["--format=pax", "--sparse", f"--sparse-version={format_.split()[1]}"]
    if format_ in ("v7", "ustar"):
        options = [f"--format={format_}"]
    options += ["--xattrs"] if is_exact else []
    written = subprocess.run(["tar", *options, "-C", source, "-c", "."], capture_output=True, check=True).stdout
    tree = merged(lease, written)
    expected = store.tree(ingest_directory(lease, source, keep_owner=True))
    assert tree == expected
    sparse = tree.get(b"sparse")
    assert sparse is not None
    if "--sparse" in options:
        assert store.path_of(sparse.digest).stat().st_blocks * 512 < 2_000_000


def test_extended_attributes(lease: Lease) -> None:
    """Those that trees carry, in both ways archives have them, as the bytes that they are."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep
    headers = {
        "SCHILY.xattr.user.a": "value",
        "SCHILY.xattr.security.capability": capability.decode(errors="surrogateescape"),
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.user.overlay.redirect": "/elsewhere",
        "SCHILY.xattr.security.selinux": "label",
        "LIBARCHIVE.xattr.user.b%3D": "dmFsdWU",
    }
    tree = merged(lease, Archive().add("file", b"x", pax_headers=headers).symlink("link", "x").finish())
    entry = tree.get(b"file")
    assert entry is not None
    assert entry.xattrs == ((b"security.capability", capability), (b"user.a", b"value"), (b"user.b=", b"value"))


def test_whiteouts_remove_what_is_below_and_nothing_of_the_archive(lease: Lease) -> None:
    base = Tree.of([file(path) for path in ("a/1", "a/2", "b/1", "b/2", "c", "d/1")])
    archive = Archive().add("a/.wh.1").add("b/new", b"new").add("b/.wh..wh..opq").add(".wh.c").add("c", b"c again")
    archive.add(".wh.d").add("d/2", b"2").add(".wh..wh.plnk").add("a/.wh.nothing")
    tree = merged(lease, archive.finish(), _added(lease, base))
    assert paths(tree) == ["", "a", "a/2", "b", "b/new", "c", "d", "d/2"]
    assert contents(lease, tree)["c"] == b"c again"


def _added(lease: Lease, base: Tree) -> Tree:
    lease.add_bytes(b"x")
    lease.add_tree(base)
    return base


def test_of_two_members_with_one_path_the_last_wins(lease: Lease) -> None:
    archive = Archive().add("a", b"1").add("./a", b"2").directory("b").add("b/inner", b"x").add("b", b"file")
    archive.add("c", b"x").directory("/c").add("c/inner", b"c").directory("d", mode=0o700).add("d/inner", b"d")
    archive.directory("d", mode=0o750).add("e/implicit", b"x").symlink("e", "d")
    tree = merged(lease, archive.finish())
    assert paths(tree) == ["", "a", "b", "c", "c/inner", "d", "d/inner", "e"]
    assert contents(lease, tree) == {"a": b"2", "b": b"file", "c/inner": b"c", "d/inner": b"d"}
    assert (entry := tree.get(b"d")) is not None and stat.S_IMODE(entry.mode) == 0o750


def test_hard_links_to_what_is_below(lease: Lease) -> None:
    linked = [msgspec.structs.replace(file(path), link=1) for path in ("one", "two", "hidden/three", "gone")]
    base = _added(lease, Tree.of([*linked, file("single"), file("untouched")]))
    archive = Archive().link("new", "two").link("other", "./single").add(".wh.gone").add("hidden", b"instead")
    tree = merged(lease, archive.finish(), base)
    groups: dict[int, list[str]] = {}
    for entry in tree:
        groups.setdefault(entry.link, []).append(os.fsdecode(entry.path))
    assert sorted(groups.pop(0)) == ["", "hidden", "untouched"]
    assert sorted(groups.values()) == [["new", "one", "two"], ["other", "single"]]


@pytest.mark.parametrize(
    ("target", "through"), [("usr/lib", "usr/lib"), ("/usr/lib", "usr/lib"), ("../../../../../etc", "etc"), ("/", "")]
)
def test_a_path_through_a_symlink_of_the_archive_stays_in_the_tree(lease: Lease, target: str, through: str) -> None:
    archive = Archive().symlink("lib", target).add("lib/name", b"x").link("hard", "lib/name")
    tree = merged(lease, archive.finish())
    assert paths(tree)[-1] == (f"{through}/name" if through else "name") or f"{through}/name" in paths(tree)
    assert (entry := tree.get(b"hard")) is not None and entry.link == 1


def test_a_path_through_a_symlink_below_makes_a_directory(lease: Lease) -> None:
    base = Tree.of([Entry(b"lib", stat.S_IFLNK | 0o777, target=b"/etc")])
    assert paths(merged(lease, Archive().add("lib/name", b"x").finish(), base)) == ["", "lib", "lib/name"]


HOSTILE = {
    "out of it": (Archive().add("../x", b"x"), r"has the path \.\./x"),
    "out of it, from within": (Archive().add("a/../../x", b"x"), r"has the path a/\.\./\.\./x"),
    "a link out of it": (Archive().link("a", "../../etc/passwd"), r"has the path \.\./\.\./etc/passwd"),
    "a link to nothing": (Archive().link("a", "nothing"), "leads to nothing, which is no file"),
    "a link to a directory": (Archive().directory("d").link("a", "d"), "leads to d, which is no file"),
    "a link to a directory, implicit": (Archive().add("d/x").link("a", "d"), "leads to d, which is no file"),
    "symlinks in a circle": (Archive().symlink("a", "b").symlink("b", "a").add("a/x", b"x"), "without an end"),
    "within a file": (
        Archive().add("a", b"x").add("a/b", b"x"),
        "a/b of an archive is within a, which is no directory",
    ),
    "a device": (Archive().add("sda", kind=tarfile.BLKTYPE), "sda of an archive is a device"),
    "a long name": (Archive().add("n" * 256, b"x"), "cannot exist"),
    "nobody's": (Archive().add("a", b"x", uid=2**32 - 1), "belongs to 4294967295:0"),
    "a root that is none": (Archive().add(".", b"x"), "the root of an archive is no directory"),
    "an unknown kind": (Archive().add("a", kind=b"M"), "unknown kind"),
    "a whiteout of nothing": (Archive().add("a/.wh."), "removes nothing"),
    "a symlink to nowhere": (Archive().symlink("a", ""), "no target"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_refused(store: Store, lease: Lease, case: str) -> None:
    archive, message = HOSTILE[case]
    with pytest.raises(ContentError, match=message):
        read(lease, archive.finish())
    assert [path for path in (store.root / "incoming").rglob("*") if path.is_file()] == []


def test_devices_in_dev_are_left_out(lease: Lease) -> None:
    archive = Archive().directory("dev").add("dev/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3)
    assert paths(merged(lease, archive.finish())) == ["", "dev"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_archive_cut_short_anywhere(lease: Lease, rng: random.Random, compression: str) -> None:
    archive = Archive().directory("d").add("d/a", rng.randbytes(2000)).add("n" * 150, b"x" * 200_000).finish()
    members = archive[: -(-len(archive.rstrip(b"\0")) // 512) * 512]
    data = COMPRESSIONS[compression](members + bytes(1024))
    padding = {"plain": 1024, "gzip, two members": 101}.get(compression, 1)
    for cut in [*rng.sample(range(len(data) - padding), 40), 0, 512, 1024, 5, len(data) - padding]:
        with pytest.raises(CorruptedError, match=r"truncated"):
            read(lease, data[:cut])


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_archive_damaged_anywhere(lease: Lease, rng: random.Random, compression: str) -> None:
    """It may be read as another one where nothing could tell; any failure is a typed error."""
    archive = Archive().directory("d").add("d/é" + "n" * 150, rng.randbytes(600), pax_headers={"mtime": "1.5"})
    data = COMPRESSIONS[compression](archive.link("hard", "d/é" + "n" * 150).symlink("s", "d").finish())
    told = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 4])):
            damaged[rng.randrange(min(len(data), 6000))] = rng.randrange(256)
        try:
            read(lease, bytes(damaged))
        except FarcallError as error:
            told += 1
            assert isinstance(error, ContentError)
    assert told > 100


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (b"no archive at all" * 100, "no tar archive"),
        (b"BZh91AY&SY" + bytes(1000), "compressed by bzip2: only gzip, zstd and none"),
        (b"\xfd7zXZ\0" + bytes(1000), "compressed by xz"),
        (gzip.compress(b"x" * 1000, mtime=0), "no tar archive"),
    ],
)
def test_what_is_no_archive(lease: Lease, data: bytes, message: str) -> None:
    with pytest.raises(ContentError, match=message):
        read(lease, data)


def test_what_expands_to_a_lot_takes_little_memory(store: Store) -> None:
    """600 MiB of zeros out of 20 kB, in an address space of 400 MiB."""
    program = (
        "import io, resource, sys, tarfile; from pathlib import Path; import zstandard\n"
        "from farcall.content import Store; from farcall.content.layers import read_layer\n"
        "resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))\n"
        "info = tarfile.TarInfo('zeros'); info.size = 600 << 20\n"
        "compressor = zstandard.ZstdCompressor().compressobj(); size = 1 << 20\n"
        "parts = [compressor.compress(info.tobuf())]\n"
        "for _ in range(600): parts.append(compressor.compress(bytes(size)))\n"
        "parts += [compressor.compress(bytes(1024)), compressor.flush()]\n"
        "with Store(Path(sys.argv[1])).lease('x') as lease:\n"
        "    [entry] = read_layer(lease, io.BytesIO(b''.join(parts))).entries\n"
        "print(entry.size)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, store.root], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{600 << 20}\n", "")


def test_errors_of_the_stream_come_through(lease: Lease) -> None:
    class Broken:
        def __init__(self, data: bytes) -> None:
            self.stream = io.BytesIO(data)

        def read(self, size: int, /) -> bytes:
            data = self.stream.read(min(size, 300))
            if not data:
                raise ResourceExhaustedError("the registry went away")
            return data

    for compress in COMPRESSIONS.values():
        data = compress(Archive().add("a", os.urandom(5000)).finish())
        with pytest.raises(ResourceExhaustedError, match="went away"):
            read_layer(lease, Broken(data[:4000]))
