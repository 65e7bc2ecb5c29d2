"""`farcall image` as a user sees it."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from farcall.builder.images import Images
from farcall.content import Store, Tree
from farcall.content.ingest import ingest_directory
from farcall.spec.image import ImageConfig
from tests.builder.oci.images import layer, make_image, member, write_layout
from tests.builder.oci.servers import docker_registry
from tests.conftest import Installation


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation.under(tmp_path / "installation", tmp_path / "shared")


@pytest.fixture
def store(installation: Installation) -> Store:
    return Store(Path(installation.environment["XDG_DATA_HOME"]) / "farcall" / "content" / "local")


@pytest.fixture
def image(store: Store, tmp_path: Path) -> str:
    """The id of an image of 5,000 bytes, named "first" and "second:tag"."""
    (tmp_path / "files" / "etc").mkdir(parents=True)
    (tmp_path / "files" / "etc" / "data").write_bytes(b"x" * 5000)
    images = Images(store)
    with store.lease("test") as lease:
        made = images.add(ingest_directory(lease, tmp_path / "files"), ImageConfig(env={"A": "b"}, cmd=("true",)))
    for name in ("second:tag", "first"):
        images.publish(made.image_id, name)
    return made.image_id


def test_list(installation: Installation, store: Store) -> None:
    assert installation.farcall("image", "list").stderr == "no image is here\n"
    with store.lease("test") as lease:
        empty = Images(store).add(lease.add_tree(Tree.of([])), ImageConfig())
    shown = installation.farcall("image", "list").stdout
    assert shown.split() == [empty.image_id, "0", "B", "just", "now"]


def test_list_says_what_images_are(installation: Installation, image: str) -> None:
    assert installation.farcall("image", "list").stdout.split() == [
        *(image, "5.0", "kB", "just", "now", "first:latest,", "second:tag")
    ]
    (found,) = json.loads(installation.farcall("image", "list", "--json").stdout)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("used_at"))
    assert found == {"id": image, "names": ["first:latest", "second:tag"], "python": None, "bytes": 5000}


def test_an_image_goes_out_and_comes_back(installation: Installation, store: Store, image: str, tmp_path: Path) -> None:
    said = installation.farcall("image", "export", "second:tag", tmp_path / "image.tar").stdout
    assert said.startswith(f"{tmp_path / 'image.tar'}: ") and "sha256:" in said
    inspect = ["skopeo", "inspect", "--config", f"oci-archive:{tmp_path / 'image.tar'}:second:tag"]
    config = json.loads(subprocess.run(inspect, check=True, capture_output=True).stdout)["config"]
    assert (config["Env"], config["Cmd"]) == (["A=b"], ["true"])

    for reference in ("first", image):
        assert installation.farcall("image", "rm", reference).stdout == f"{reference} is forgotten\n"
    assert installation.farcall("image", "list").stdout == ""

    said = installation.farcall("image", "import", tmp_path / "image.tar", "--name", "back").stdout
    assert said.startswith(f"{image}  back:latest: 5.0 kB, sha256:")
    assert Images(store).get("back").config == ImageConfig(env={"A": "b"}, cmd=("true",))


def test_a_name_can_go_without_its_image(installation: Installation, image: str) -> None:
    installation.farcall("image", "rm", "second:tag")
    assert installation.farcall("image", "list").stdout.endswith("  first:latest\n")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that has library/tiny:1."""
    folder = tmp_path_factory.mktemp("registry")
    write_layout(make_image([layer(member("file", b"x" * 5000))]), folder / "layout")
    with docker_registry(folder / "registry") as host:
        copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{folder / 'layout'}:latest"]
        subprocess.run([*copy, f"docker://{host}/library/tiny:1"], check=True, capture_output=True)
        yield host


def test_pull(server: Installation, registry: str) -> None:
    done = server.farcall("image", "pull", f"{registry}/library/tiny:1", "--name", "mine")
    image, name = done.stdout.split()
    assert name == "mine:latest"
    assert f"image: step 1 of 1: FROM {registry}/library/tiny:1" in done.stderr
    assert f"{image}   5.0 kB  no Python" in server.farcall("image", "list").stdout
    wrong = server.farcall("image", "pull", f"{registry}/library/tiny:2", check=False)
    assert wrong.returncode != 0
    assert "tiny:2 is not in the registry" in wrong.stderr and "nearest of its 1 tags: 1" in wrong.stderr


def test_the_settings_of_registries_are_those_of_the_command_not_of_the_server(
    server: Installation, registry: str
) -> None:
    assert server.farcall("image", "pull", "tiny:1", FARCALL_REGISTRY=registry).stdout.startswith("im-")
    elsewhere = "0.0.0.0:" + registry.partition(":")[2]  # the same, by a name that does not say it is this machine
    refused = server.farcall("image", "pull", f"{elsewhere}/library/tiny:1", check=False)
    assert "insecure_registries" in refused.stderr
    server.farcall("image", "pull", f"{elsewhere}/library/tiny:1", FARCALL_INSECURE_REGISTRIES="0.0.0.0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "nothing", "x.tar"], "there is no image named 'nothing'; known: first:latest, second:tag"),
        (["export", "im-nothing", "x.tar"], "there is no image im-nothing here"),
        (["export", "first", "nowhere/x.tar"], "nowhere/x.tar does not exist"),
        (["import", "missing.tar", "--name", "a"], "missing.tar does not exist"),
        (["import", ".", "--name", "a"], ". is no archive of an image"),
        (["import", "missing.tar", "--name", "im-1"], "'im-1' cannot be an image's name"),
        (["pull", "a", "--name", "im-1"], "'im-1' cannot be an image's name"),
        (["rm", "first", "nothing"], "there is no image named 'nothing'"),
    ],
)
def test_what_cannot_be_done(
    installation: Installation, image: str, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = installation.farcall("image", *arguments, check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert said in done.stderr and "Traceback" not in done.stderr
    assert installation.farcall("image", "list").stdout.endswith("first:latest, second:tag\n")
