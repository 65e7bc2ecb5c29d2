"""Archives: what is exported, skopeo, umoci and podman read; what they, and docker, write is imported."""

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from farcall import errors
from farcall.builder.oci.archive import import_archive
from farcall.builder.oci.export import export_archive
from farcall.builder.oci.image import Pulled
from farcall.builder.oci.platform import this_machine
from farcall.content import Entry, Store, Tree
from farcall.spec.image import ImageConfig
from tests.builder.oci.images import MadeImage, layer, make_image, make_index, member, write_layout
from tests.builder.oci.test_pull import CONFIG, EXPECTED, LAYERS, listing
from tests.conftest import short_directory

IMAGE_CONFIG = ImageConfig(
    env={"PATH": "/usr/bin", "EQUALS": "a=b"},
    workdir="/srv",
    entrypoint=("/bin/sh", "-c"),
    cmd=("true",),
    shell=("/bin/bash", "-c"),
    user="1000:100",
    labels={"b": "2", "a": "1"},
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tree_id(store: Store) -> str:
    """A tree with one of everything that trees hold."""
    with store.lease("test") as lease:
        small, big = lease.add_bytes(b"small"), lease.add_bytes(b"big" * 500_000)
        file, directory = stat.S_IFREG, stat.S_IFDIR | 0o755
        hard = {"uid": 1000, "gid": 100, "size": 5, "digest": small, "link": 1, "mtime_ns": 1_600_000_000_123_456_789}
        made = lease.add_tree(
            [
                Entry(b"", directory, mtime_ns=7_000_000_000),
                Entry(b"directory", stat.S_IFDIR | 0o1777),
                Entry(b"directory/" + b"long" * 60, file | 0o644, size=5, digest=small, uid=3_000_000),
                Entry(b"before the epoch", file | 0o600, mtime_ns=-1_500_000_000),
                Entry(
                    b"big",
                    file | 0o4755,
                    size=1_500_000,
                    digest=big,
                    xattrs=((b"user.a", b"v\xff\0x"), (b"user.b", b"")),
                ),
                Entry(b"hard", file | 0o640, **hard),  # type: ignore[arg-type]
                Entry(b"link to it", file | 0o640, **hard),  # type: ignore[arg-type]
                Entry(b"not \xff utf-8", file | 0o644, size=5, digest=small),
                Entry("ünï".encode(), stat.S_IFLNK | 0o777, target=b"/to/\xff" + b"x" * 120),
                Entry(b"pipe", stat.S_IFIFO | 0o600),
                Entry(b"socket", stat.S_IFSOCK | 0o600),
            ]
        )
        store.put_record("tests", "tree", trees=[made])
    return made


def take(store: Store, path: Path, **options: object) -> tuple[Pulled, Tree]:
    with store.lease("test") as lease:
        pulled = import_archive(lease, path, **options)  # type: ignore[arg-type]
        return pulled, store.tree(pulled.tree_id)


def run(*command: str | Path) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def without_sockets(tree: Tree) -> list[Entry]:
    return [entry for entry in tree if not stat.S_ISSOCK(entry.mode)]


# --- export


def test_an_export_comes_back_as_it_was(store: Store, tree_id: str, tmp_path: Path) -> None:
    digest = export_archive(store, tree_id, IMAGE_CONFIG, tmp_path / "image.tar", name="name:tag")
    other = Store(tmp_path / "other")
    pulled, tree = take(other, tmp_path / "image.tar", name="name:tag")
    assert (pulled.digest, pulled.config) == (digest, IMAGE_CONFIG)
    assert list(tree) == without_sockets(store.tree(tree_id))


def test_an_export_is_the_same_each_time(store: Store, tree_id: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_archive(store, tree_id, IMAGE_CONFIG, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_skopeo_reads_an_export(store: Store, tree_id: str, tmp_path: Path) -> None:
    digest = export_archive(store, tree_id, IMAGE_CONFIG, tmp_path / "image.tar")
    seen = json.loads(run("skopeo", "inspect", f"oci-archive:{tmp_path}/image.tar"))
    assert (seen["Digest"], seen["Architecture"], seen["Os"]) == (digest, this_machine().architecture, "linux")
    config = json.loads(run("skopeo", "inspect", "--config", f"oci-archive:{tmp_path}/image.tar"))["config"]
    assert config["Env"] == ["PATH=/usr/bin", "EQUALS=a=b"]
    assert (config["User"], config["WorkingDir"]) == ("1000:100", "/srv")
    assert (config["Entrypoint"], config["Cmd"], config["Labels"]) == (
        ["/bin/sh", "-c"],
        ["true"],
        {"a": "1", "b": "2"},
    )


@pytest.mark.root("owners and attributes are set as they were")
def test_an_export_is_unpacked_by_others_as_it_was(store: Store, tree_id: str, tmp_path: Path) -> None:
    export_archive(store, tree_id, IMAGE_CONFIG, tmp_path / "image.tar")
    run("skopeo", "copy", "-q", f"oci-archive:{tmp_path}/image.tar", f"oci:{tmp_path}/layout:tag")
    run("umoci", "unpack", "--image", f"{tmp_path}/layout:tag", tmp_path / "bundle")
    root = os.fsencode(tmp_path / "bundle" / "rootfs")
    inodes: dict[int, int] = {}
    for entry in without_sockets(store.tree(tree_id)):
        path = os.path.join(root, entry.path)
        found = os.lstat(path)
        assert (found.st_mode, found.st_uid, found.st_gid) == (entry.mode, entry.uid, entry.gid), entry.path
        assert found.st_mtime_ns == entry.mtime_ns, entry.path
        if entry.is_symlink:
            assert os.readlink(path) == entry.target
            continue
        names = {os.fsencode(name) for name in os.listxattr(path)}
        found_xattrs = {(name, os.getxattr(path, name)) for name in names if name.startswith(b"user.")}
        # Go's tar takes an empty attribute for none.
        assert found_xattrs == {(name, value) for name, value in entry.xattrs if value}
        if entry.is_regular:
            with open(path, "rb") as file:
                assert (hashlib.file_digest(file, "sha256").digest() if entry.size else b"") == entry.digest
        if entry.link:
            assert inodes.setdefault(entry.link, found.st_ino) == found.st_ino
    assert (
        len(os.listdir(root)) == len([one for one in without_sockets(store.tree(tree_id)) if b"/" not in one.path]) - 1
    )


@pytest.mark.root("podman without root needs more of the machine")
@pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed")
def test_podman_loads_an_export(store: Store, tree_id: str, tmp_path: Path) -> None:
    export_archive(store, tree_id, IMAGE_CONFIG, tmp_path / "image.tar", name="name:tag")
    with short_directory() as short:
        podman = ["podman", "--root", tmp_path / "root", "--runroot", short / "run", "--tmpdir", short / "tmp"]
        podman += ["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none"]
        run(*podman, "load", "-i", tmp_path / "image.tar")
        seen = json.loads(run(*podman, "image", "inspect", "name:tag"))[0]
    assert seen["Config"]["Entrypoint"] == ["/bin/sh", "-c"]
    assert seen["RootFS"]["Layers"][0].startswith("sha256:")


def test_an_export_that_fails_leaves_the_file_that_was_there(store: Store, tree_id: str, tmp_path: Path) -> None:
    target = tmp_path / "out" / "image.tar"
    target.parent.mkdir()
    target.write_text("before")
    entry = store.tree(tree_id).get(b"big")
    assert entry is not None
    damaged = store.path_of(entry.digest)
    damaged.chmod(0o644)
    damaged.write_bytes(b"bog" * 500_000)
    with pytest.raises(errors.CorruptedError, match="the file /big, is damaged"):
        export_archive(store, tree_id, IMAGE_CONFIG, target)
    damaged.unlink()
    with pytest.raises(errors.NotFoundError, match="no object"):
        export_archive(store, tree_id, IMAGE_CONFIG, target)
    assert [path.read_text() for path in target.parent.iterdir()] == ["before"]
    with pytest.raises(errors.NotFoundError, match="nowhere"):
        export_archive(store, tree_id, IMAGE_CONFIG, tmp_path / "nowhere" / "image.tar")


# --- import


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """An image's layout, tagged latest."""
    write_layout(make_image(LAYERS, config=CONFIG), tmp_path / "layout")
    return tmp_path / "layout"


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_what_skopeo_writes(layout: Path, store: Store, tmp_path: Path, kind: str) -> None:
    run("skopeo", "copy", "-q", f"oci:{layout}:latest", f"{kind}:{tmp_path}/image.tar:ghcr.io/owner/name:tag")
    pulled, tree = take(store, tmp_path / "image.tar")
    assert listing(tree) == EXPECTED
    assert pulled.config.entrypoint == ("/bin/sh", "-c")
    assert pulled.digest.startswith("sha256:")
    assert take(store, tmp_path / "image.tar", name="tag")[1] == tree
    assert take(store, tmp_path / "image.tar", name="ghcr.io/owner/name:tag")[1] == tree
    with pytest.raises(errors.NotFoundError, match=r"no image 'other'. Its images: .*name:tag"):
        take(store, tmp_path / "image.tar", name="other")


def test_a_layout_that_is_a_directory(layout: Path, store: Store) -> None:
    assert listing(take(store, layout)[1]) == EXPECTED


def test_several_images_in_an_archive(store: Store, tmp_path: Path) -> None:
    work = tmp_path / "layout"
    for tag in ("one", "two"):
        write_layout(make_image([layer(member(tag))]), tmp_path / tag, tag)
        run("skopeo", "copy", "-q", f"oci:{tmp_path / tag}:{tag}", f"oci:{work}:{tag}")
    with pytest.raises(errors.NotFoundError, match="several images: one, two"):
        take(store, work)
    assert list(listing(take(store, work, name="two")[1])) == ["two"]


def test_an_index_of_platforms_in_an_archive(store: Store, tmp_path: Path) -> None:
    ours = str(this_machine())
    index = make_index({"linux/mips": make_image([], architecture="mips"), ours: make_image([layer(member("ours"))])})
    write_layout(index, tmp_path / "layout")
    assert list(listing(take(store, tmp_path / "layout")[1])) == ["ours"]


def docker_archive(path: Path, image: MadeImage, *, links: bool = False) -> None:
    """As `docker save` of old wrote it: a folder for each layer; with `links` the second is a link to the first."""
    manifest = json.loads(image.documents[-1].data)
    with tarfile.open(path, "w") as archive:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        add("config.json", image.blobs[manifest["config"]["digest"]])
        names: list[str] = []
        for number, one in enumerate(manifest["layers"]):
            names.append(f"{number}/layer.tar")
            if number and links:
                info = tarfile.TarInfo(names[-1])
                info.type, info.linkname = tarfile.SYMTYPE, "../0/layer.tar"
                archive.addfile(info)
            else:
                add(names[-1], image.blobs[one["digest"]])
        add("manifest.json", json.dumps([{"Config": "config.json", "RepoTags": None, "Layers": names}]).encode())


def test_what_old_dockers_write(store: Store, tmp_path: Path) -> None:
    docker_archive(tmp_path / "image.tar", make_image(LAYERS, compression=""))
    assert listing(take(store, tmp_path / "image.tar")[1]) == EXPECTED
    twice = layer(member("twice"))
    docker_archive(tmp_path / "linked.tar", make_image([twice, twice], compression=""), links=True)
    assert list(listing(take(store, tmp_path / "linked.tar")[1])) == ["twice"]


def test_what_is_no_archive_of_an_image(store: Store, tmp_path: Path, layout: Path) -> None:
    with pytest.raises(errors.NotFoundError, match=r"missing\.tar does not exist"):
        take(store, tmp_path / "missing.tar")
    (tmp_path / "text").write_text("hello" * 1000)
    with pytest.raises(errors.ContentError, match="cannot be read as a tar archive"):
        take(store, tmp_path / "text")
    (tmp_path / "empty").touch()
    with pytest.raises(errors.ContentError, match="archive"):
        take(store, tmp_path / "empty")
    run("tar", "cf", tmp_path / "other.tar", "-C", tmp_path, "text")
    with pytest.raises(errors.ContentError, match=r"neither oci-layout .* nor manifest\.json"):
        take(store, tmp_path / "other.tar")
    run("tar", "czf", tmp_path / "image.tar.gz", "-C", layout, ".")
    with pytest.raises(errors.ContentError, match="compressed as a whole: run `gunzip`"):
        take(store, tmp_path / "image.tar.gz")


def test_damaged_archives(store: Store, tmp_path: Path, layout: Path) -> None:
    run("tar", "cf", tmp_path / "image.tar", "-C", layout, ".")
    whole = (tmp_path / "image.tar").read_bytes()
    for length in (100, 1000, len(whole) // 3, len(whole.rstrip(b"\0")) - 10):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(errors.ContentError, match=r"cut\.tar"):
            take(store, tmp_path / "cut.tar")
    manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    blob = layout / "blobs" / "sha256" / manifest.partition(":")[2]
    document = json.loads(blob.read_bytes())
    blob.write_bytes(blob.read_bytes().replace(b"schemaVersion", b"schemaversion"))
    with pytest.raises(errors.CorruptedError, match="another digest"):
        take(store, layout)
    blob.unlink()
    with pytest.raises(errors.CorruptedError, match=f"it has no blobs/sha256/{blob.name}"):
        take(store, layout)
    blob.write_text(json.dumps(document))
    (layout / "index.json").write_text("{")
    with pytest.raises(errors.ContentError, match=r"index\.json of .* cannot be read"):
        take(store, layout)


def test_a_layer_that_was_changed(store: Store, tmp_path: Path) -> None:
    image = make_image([layer(member("a", b"one"))], compression="")
    (digest,) = (one["digest"] for one in json.loads(image.documents[-1].data)["layers"])
    image.blobs[digest] = layer(member("a", b"two"))
    write_layout(image, tmp_path / "layout")
    with pytest.raises(errors.CorruptedError, match=f"not {digest}"):
        take(store, tmp_path / "layout")


def test_a_docker_archive_that_leads_outside(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(layer(member("secret")))
    (tmp_path / "images").mkdir()
    manifest = [{"Config": "../secret", "Layers": []}]
    (tmp_path / "images" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(errors.FarcallError, match=r"it has no \.\./secret"):
        take(store, tmp_path / "images")
