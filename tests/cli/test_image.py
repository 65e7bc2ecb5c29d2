"""`farcall image` as a user sees it."""

import json
import subprocess
from pathlib import Path

import pytest

from farcall.builder.images import Images
from farcall.content import Store, Tree
from farcall.content.ingest import ingest_directory
from farcall.spec.image import ImageConfig
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
    assert found.pop("used") > 0
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "nothing", "x.tar"], "there is no image named 'nothing'; known: first:latest, second:tag"),
        (["export", "im-nothing", "x.tar"], "there is no image im-nothing here"),
        (["export", "first", "nowhere/x.tar"], "nowhere/x.tar does not exist"),
        (["import", "missing.tar", "--name", "a"], "missing.tar does not exist"),
        (["import", ".", "--name", "a"], ". is no archive of an image"),
        (["import", "missing.tar", "--name", "im-1"], "'im-1' cannot be an image's name"),
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
