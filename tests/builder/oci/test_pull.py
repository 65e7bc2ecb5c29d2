"""Images pulled from a real registry, which skopeo has filled, and from servers that answer badly."""

import hashlib
import json
import os
import stat
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest

from farcall import errors
from farcall.builder.oci.endpoint import Access
from farcall.builder.oci.image import Pulled
from farcall.builder.oci.platform import Platform, this_machine
from farcall.builder.oci.pull import pull
from farcall.content import Store, Tree
from tests.builder.oci.conftest import Patience
from tests.builder.oci.images import (
    TIME,
    MadeImage,
    digest_of,
    folder,
    layer,
    link,
    make_image,
    make_index,
    member,
    symlink,
    write_layout,
)
from tests.builder.oci.servers import Answer, Asked, Server, ranged

CONFIG = {
    "Env": ["PATH=/usr/bin", "EMPTY=", "EQUALS=a=b"],
    "WorkingDir": "/srv",
    "Entrypoint": ["/bin/sh", "-c"],
    "Cmd": ["true"],
    "User": "1000:100",
    "Labels": {"a": "b"},
    "ExposedPorts": {"80/tcp": {}},
    "Volumes": None,
}
LAYERS = [
    layer(
        folder("etc"),
        member("etc/one", b"1", mode=0o640, uid=5, gid=6),
        member("etc/two", b"2"),
        folder("opaque"),
        member("opaque/old", b"old"),
        folder("gone"),
        member("gone/inside", b"x"),
        member("linked", b"linked", pax_headers={"SCHILY.xattr.user.key": "value", "mtime": "1600000000.125"}),
    ),
    layer(
        member("etc/.wh.two"),
        member("etc/three", b"3" * 100_000),
        folder("opaque"),
        member("opaque/.wh..wh..opq"),
        member("opaque/new", b"new"),
        member(".wh.gone"),
        link("etc/hard", "linked"),
        symlink("shortcut", "/etc/one"),
    ),
    layer(member("etc/one", b"one again", mode=0o600)),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def fetch(store: Store, name: str, patience: Patience, **options: object) -> tuple[Pulled, Tree]:
    with store.lease("test") as lease:
        pulled = pull(lease, name, timing=patience.timing, **options)  # type: ignore[arg-type]
        return pulled, store.tree(pulled.tree_id)


def push(image: MadeImage, name: str, work: Path, *options: str) -> None:
    """By skopeo."""
    if not work.exists():
        write_layout(image, work)
    copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", *options]
    done = subprocess.run(
        [*copy, f"oci:{work}:latest", f"docker://{name}"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def listing(tree: Tree) -> dict[str, str]:
    """Path to mode, owner, and content's hash or target."""
    return {
        os.fsdecode(entry.path): f"{stat.filemode(entry.mode)} {entry.uid}:{entry.gid} "
        f"{os.fsdecode(entry.target) or entry.digest.hex()[:8]}"
        for entry in tree
        if entry.path
    }


def short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


EXPECTED = {
    "etc": "drwxr-xr-x 0:0 ",
    "etc/hard": f"-rw-r--r-- 0:0 {short(b'linked')}",
    "etc/one": f"-rw------- 0:0 {short(b'one again')}",
    "etc/three": f"-rw-r--r-- 0:0 {short(b'3' * 100_000)}",
    "linked": f"-rw-r--r-- 0:0 {short(b'linked')}",
    "opaque": "drwxr-xr-x 0:0 ",
    "opaque/new": f"-rw-r--r-- 0:0 {short(b'new')}",
    "shortcut": "lrwxrwxrwx 0:0 /etc/one",
}


@pytest.mark.parametrize(
    ("compression", "docker"), [("gzip", False), ("zstd", False), ("", False), ("gzip", True), ("", True)]
)
def test_an_image(
    registry: str, store: Store, tmp_path: Path, patience: Patience, compression: str, docker: bool
) -> None:
    image = make_image(LAYERS, config=CONFIG, compression=compression)
    name = f"{registry}/image/{compression or 'plain'}:{'docker' if docker else 'oci'}"
    push(image, name, tmp_path / "layout", *(["--format=v2s2"] if docker else ["--preserve-digests"]))
    seen: list[tuple[str, int, int]] = []
    pulled, tree = fetch(store, name, patience, progress=lambda *word: seen.append(word))
    assert listing(tree) == EXPECTED
    linked, hard = tree.get(b"linked"), tree.get(b"etc/hard")
    assert linked is not None and hard is not None and linked.link == hard.link != 0
    assert linked.xattrs == ((b"user.key", b"value"),)
    assert linked.mtime_ns == 1_600_000_000_125_000_000
    assert tree.get(b"etc/three").mtime_ns == TIME * 10**9  # type: ignore[union-attr]
    config = pulled.config
    assert config.env == {"PATH": "/usr/bin", "EMPTY": "", "EQUALS": "a=b"}
    assert (config.workdir, config.user, config.labels) == ("/srv", "1000:100", {"a": "b"})
    assert (config.entrypoint, config.cmd) == (("/bin/sh", "-c"), ("true",))
    assert docker or pulled.digest == image.digest
    # Each layer was told of up to its end.
    assert all(done <= total for _, done, total in seen)
    assert len({digest for digest, done, total in seen if done == total}) == 3
    assert list((store.root / "downloads").iterdir()) == []


def test_an_image_by_its_digest(registry: str, store: Store, tmp_path: Path, patience: Patience) -> None:
    image = make_image(LAYERS)
    push(image, f"{registry}/by/digest:1", tmp_path / "layout", "--preserve-digests")
    pulled, _ = fetch(store, f"{registry}/by/digest:other@{image.digest}", patience)
    assert pulled.digest == image.digest


@pytest.mark.parametrize("docker", [False, True], ids=["index", "manifest list"])
def test_the_image_of_this_machine_s_platform(
    registry: str, store: Store, tmp_path: Path, patience: Patience, docker: bool
) -> None:
    ours = str(this_machine())
    index = make_index(
        {
            "linux/mips": make_image([layer(member("mips"))], architecture="mips"),
            ours: make_image([layer(member("ours"))]),
            "linux/s390x": make_image([layer(member("s390x"))], architecture="s390x"),
            "unknown/unknown": make_image([layer(member("attestation"))]),
        }
    )
    name = f"{registry}/platforms:{'list' if docker else 'index'}"
    push(index, name, tmp_path / "layout", "--all", *(["--format=v2s2"] if docker else []))
    assert list(listing(fetch(store, name, patience)[1])) == ["ours"]
    assert list(listing(fetch(store, name, patience, platform=Platform("linux", "s390x"))[1])) == ["s390x"]
    with pytest.raises(
        errors.NotFoundError, match=r"no image for linux/riscv64.*It has: linux/.*linux/mips, linux/s390x"
    ):
        fetch(store, name, patience, platform=Platform("linux", "riscv64"))


def test_an_image_of_another_platform_is_refused(server: Server, store: Store, patience: Patience) -> None:
    server.on_image(make_image(LAYERS, architecture="mips"), "name")
    with pytest.raises(errors.NotFoundError, match=f"no image for {this_machine()}.*It has: linux/mips"):
        fetch(store, f"{server.host}/name", patience)


def test_variants_of_a_processor() -> None:
    arm = Platform("linux", "arm", "v7")
    assert arm.rank(Platform("linux", "arm", "v6")) == 1
    assert arm.rank(Platform("linux", "arm")) == 0
    assert arm.rank(Platform("linux", "arm", "v8")) is None
    assert Platform("linux", "arm64", "v8").rank(Platform("linux", "arm64")) == 0
    assert Platform("linux", "amd64").rank(Platform("linux", "amd64", "v3")) is None
    assert Platform("linux", "amd64").rank(Platform("windows", "amd64")) is None


def test_layers_that_another_image_brought_are_not_fetched_again(
    server: Server, store: Store, patience: Patience
) -> None:
    server.on_image(make_image(LAYERS[:2]), "base")
    server.on_image(make_image(LAYERS), "name")
    fetch(store, f"{server.host}/base", patience)
    before = len(server.asked)
    _, tree = fetch(store, f"{server.host}/name", patience)
    assert listing(tree) == EXPECTED
    asked = [path for path in (one.path for one in server.asked[before:]) if "/blobs/" in path]
    assert len(asked) == 2  # the configuration and the last layer
    before = len(server.asked)
    assert fetch(store, f"{server.host}/name", patience)[1] == tree
    assert len([one for one in server.asked[before:] if "/blobs/" in one.path]) == 1


def test_a_pull_that_fails_is_gone_on_with(server: Server, store: Store, patience: Patience) -> None:
    image = make_image(LAYERS)
    server.on_image(image, "name")
    last = json.loads(image.documents[-1].data)["layers"][-1]["digest"]

    def cut(asked: Asked) -> Answer:
        """A part, and only when the layers below are unpacked."""
        while len(store.records("layers")) < 2:
            time.sleep(0.01)
        return Answer(200, image.blobs[last], then="cut", sent=20)

    server.on(f"/v2/name/blobs/{last}", cut)
    with pytest.raises(errors.ConnectionError, match="broke"):
        fetch(store, f"{server.host}/name", patience)
    server.on(f"/v2/name/blobs/{last}", ranged(image.blobs[last]))
    before = len(server.asked)
    _, tree = fetch(store, f"{server.host}/name", patience)
    assert listing(tree) == EXPECTED
    (asked,) = [one for one in server.asked[before:] if "/blobs/" in one.path][1:]  # behind the configuration
    assert asked.path.endswith(last)
    assert asked.headers["range"] == "bytes=20-"


def test_one_layer_that_fails_ends_the_others(server: Server, store: Store, patience: Patience) -> None:
    image = make_image(LAYERS)
    server.on_image(image, "name")
    first, _, last = (one["digest"] for one in json.loads(image.documents[-1].data)["layers"])
    server.on(f"/v2/name/blobs/{first}", Answer(200, image.blobs[first], then="trickle", sent=1))
    server.on(f"/v2/name/blobs/{last}", Answer(404))
    before = set(threading.enumerate())
    with pytest.raises(errors.NotFoundError, match=f"{last} is not in the registry"):
        fetch(store, f"{server.host}/name", patience)
    started = [thread.name for thread in threading.enumerate() if thread not in before]
    assert [name for name in started if name.startswith("farcall-layer")] == []


def test_layers_that_are_not_what_the_configuration_says(server: Server, store: Store, patience: Patience) -> None:
    wrong = [digest_of(LAYERS[0]), digest_of(b"another"), digest_of(LAYERS[2])]
    server.on_image(make_image(LAYERS, diff_ids=wrong), "name")
    with pytest.raises(errors.CorruptedError, match=f"{wrong[1]}"):
        fetch(store, f"{server.host}/name", patience)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([member("../etc/passwd", b"x")], r"\.\."),
        ([member("srv/disk", type=tarfile.BLKTYPE, devmajor=8, devminor=1)], "srv/disk.* is a device"),
        ([link("passwd", "../../etc/passwd")], "passwd"),
        ([link("a", "not-there")], "not-there"),
    ],
)
def test_layers_that_are_refused(
    server: Server, store: Store, patience: Patience, members: list[tuple[tarfile.TarInfo, bytes]], said: str
) -> None:
    server.on_image(make_image([layer(*members)]), "name")
    with pytest.raises(errors.FarcallError, match=said) as raised:
        fetch(store, f"{server.host}/name", patience)
    assert f"{server.host}/name:latest" in str(raised.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"garbage that is no archive at all" * 100, "layer 1 of 1"),
        (LAYERS[1][:70_000], "layer 1 of 1"),
    ],
)
def test_layers_that_are_no_archive(server: Server, store: Store, patience: Patience, data: bytes, said: str) -> None:
    server.on_image(make_image([data]), "name")
    with pytest.raises(errors.ContentError, match=said):
        fetch(store, f"{server.host}/name", patience)


@pytest.mark.parametrize(
    ("manifest", "error", "said"),
    [
        (b"<html>", errors.ContentError, "cannot be read"),
        (b"[]", errors.ContentError, "cannot be read"),
        (b'{"schemaVersion": 2}', errors.ContentError, "lacks config or layers"),
        (b'{"schemaVersion": 1, "fsLayers": []}', errors.UnimplementedError, "schema 1"),
        (b'{"schemaVersion": 2, "manifests": [], "layers": []}', errors.ContentError, "both an image and an index"),
        (b'{"schemaVersion": 2, "manifests": []}', errors.NotFoundError, "It has: none"),
        (
            b'{"schemaVersion": 2, "config": {"digest": "sha256:x", "size": 1}, "layers": []}',
            errors.ContentError,
            "no digest",
        ),
    ],
)
def test_documents_that_are_no_image(
    server: Server, store: Store, patience: Patience, manifest: bytes, error: type[Exception], said: str
) -> None:
    server.on("/v2/name/manifests/latest", Answer(200, manifest))
    with pytest.raises(error, match=said):
        fetch(store, f"{server.host}/name", patience)


@pytest.mark.parametrize(
    "kind",
    [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+encrypted",
        "text/plain",
    ],
)
def test_layers_of_other_kinds(server: Server, store: Store, patience: Patience, kind: str) -> None:
    server.on_image(make_image(LAYERS, layer_type=kind), "name")
    with pytest.raises(errors.UnimplementedError, match=kind.replace("+", r"\+")):
        fetch(store, f"{server.host}/name", patience)


def test_what_is_no_image_of_a_container(server: Server, store: Store, patience: Patience) -> None:
    image = make_image(LAYERS)
    document = image.documents[-1]
    chart = document.data.replace(b"vnd.oci.image.config.v1", b"vnd.cncf.helm.config.v1")
    server.on("/v2/name/manifests/latest", Answer(200, chart))
    with pytest.raises(errors.ContentError, match=r"no image of a container.*helm"):
        fetch(store, f"{server.host}/name", patience)


def test_two_pulls_of_one_image_at_once(server: Server, store: Store, patience: Patience) -> None:
    server.on_image(make_image(LAYERS), "name")
    trees: list[Tree] = []
    threads = [
        threading.Thread(target=lambda: trees.append(fetch(store, f"{server.host}/name", Patience())[1]))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trees) == 3 and all(listing(tree) == EXPECTED for tree in trees)


def test_a_registry_that_is_not_there(server: Server, store: Store, patience: Patience) -> None:
    """What it is wanted for is said, and what may be asked in its place."""
    server.close()
    with store.lease("test") as lease, pytest.raises(errors.ConnectionError) as raised:
        pull(lease, "busybox:1", access=Access(server.host), timing=patience.timing)
    said = str(raised.value)
    assert said.startswith(
        f"docker.io/library/busybox:1 (from {server.host}) could not be fetched: {server.host} cannot"
    )
    assert "(3 attempts in " in said and "FARCALL_REGISTRY" in said
    with store.lease("test") as lease, pytest.raises(errors.ConnectionError) as raised:
        pull(lease, f"{server.host}/busybox:1", timing=patience.timing)
    assert "FARCALL_REGISTRY" not in str(raised.value)
