"""Builds on images from a registry, and on imported ones: what they are is pulled by a job, and run."""

import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from farcall.builder import builder
from farcall.builder.oci.archive import import_archive
from farcall.builder.oci.endpoint import Access
from farcall.builder.oci.export import export_archive
from farcall.builder.oci.reference import python_slim
from farcall.builder.oci.registry import reachable
from farcall.errors import AuthError, NotFoundError
from farcall.spec.image import (
    BuiltBase,
    Configure,
    Copy,
    DebianBase,
    ImageConfig,
    ImageSpec,
    RegistryBase,
    Run,
    ScratchBase,
)
from tests.builder.conftest import Workshop
from tests.builder.oci.servers import Answer, Server, docker_registry

CONFIG = ImageConfig(env={"PATH": "/bin", "GREETING": "hello"}, workdir="/work", user="")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry on a busy machine is one that can be reached all the same."""
    monkeypatch.setattr(builder, "_reachable", functools.partial(reachable, seconds=30.0))


@pytest.fixture(scope="module")
def archive(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of the programs as an archive."""
    made = tmp_path_factory.mktemp("archive") / "programs.tar"
    export_archive(workshop.store, workshop.ingest(workshop.programs), CONFIG, made)
    return made


@pytest.fixture(scope="module")
def registry(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that has it, also under the name of a Python image."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        for name in ("programs:1", python_slim("3.12").removeprefix("docker.io/")):
            push(archive, f"{host}/{name}")
        yield host


def push(archive: Path, name: str) -> None:
    copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci-archive:{archive}", f"docker://{name}"]
    subprocess.run(copy, check=True, capture_output=True)


def test_steps_on_an_image_of_a_registry(workshop: Workshop, registry: str) -> None:
    spec = ImageSpec(RegistryBase(f"{registry}/programs:1"), (Run("echo $GREETING from $PWD > /said"),))
    image = workshop.run(workshop.build_async(spec))
    assert workshop.text(image, "/said") == "hello from /work\n"
    assert workshop.states == ["done", "done"]
    assert any("MiB" in event.progress for event in workshop.events)
    workshop.run(workshop.build_async(spec, builder=workshop.another()))
    assert workshop.states == ["cached", "cached"]


def test_copying_from_an_image_of_a_registry(workshop: Workshop, registry: str) -> None:
    copied = Copy("/passwd", ("etc/passwd",), image=RegistryBase(f"{registry}/programs:1"))
    image = workshop.run(workshop.build_async(ImageSpec(ScratchBase(), (copied,))))
    assert "ada" in workshop.text(image, "/passwd")


def test_an_image_that_is_not_there(workshop: Workshop, registry: str) -> None:
    with pytest.raises(NotFoundError, match=f"{registry}/programs:2 is not in the registry.*nearest of its 1 tags: 1"):
        workshop.run(workshop.build_async(ImageSpec(RegistryBase(f"{registry}/programs:2"))))
    assert workshop.states == ["failed"]


def test_a_secret_reaches_the_registry_and_no_record(workshop: Workshop, tmp_path: Path, archive: Path) -> None:
    passwords = tmp_path / "htpasswd"
    subprocess.run(["htpasswd", "-Bbc", passwords, "anna", "sesame"], check=True, capture_output=True)
    with docker_registry(tmp_path / "registry", {"htpasswd": {"realm": "tests", "path": str(passwords)}}) as host:
        push_as = ["skopeo", "copy", "-q", "--dest-tls-verify=false", "--dest-creds=anna:sesame"]
        subprocess.run([*push_as, f"oci-archive:{archive}", f"docker://{host}/p:1"], check=True, capture_output=True)
        handles = {"REGISTRY_USERNAME": "s1", "REGISTRY_PASSWORD": "s2"}
        spec = ImageSpec(RegistryBase(f"{host}/p:1", credentials=handles))
        with pytest.raises(AuthError, match=r"the secret's REGISTRY_USERNAME") as raised:
            workshop.run(workshop.build_async(spec, secrets={"s1": "anna", "s2": "wrong-word"}))
        assert "wrong-word" not in str(raised.value)
        workshop.run(workshop.build_async(spec, secrets={"s1": "anna", "s2": "sesame"}))
    records = b"".join(path.read_bytes() for path in workshop.store.record_files.files())
    assert b"programs" in records or records
    assert b"sesame" not in records


def test_debian_slim_is_the_registry_s_where_that_can_be_reached(workshop: Workshop, registry: str) -> None:
    spec = ImageSpec(DebianBase("3.12"), (Run("echo $GREETING"),))
    image = workshop.run(workshop.build_async(spec, access=Access(registry)))
    assert image.config.env["GREETING"] == "hello"
    assert workshop.output == "hello\n"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(404), "is not in the registry"),
        pytest.param(Answer(429, headers={"Retry-After": "0"}), "429", marks=pytest.mark.long),  # as slow as the next
        (Answer(500, headers={"Retry-After": "0"}), "500"),
        (Answer(401, headers={"WWW-Authenticate": 'Basic realm="tests"'}), "401"),
    ],
    ids=["404", "429", "500", "401"],
)
def test_debian_is_made_here_where_the_registry_does_not_give_it(
    workshop: Workshop, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, why: str
) -> None:
    """What makes it is a program that answers like mmdebstrap: the real one takes half a minute."""
    made = tmp_path / "mmdebstrap"
    made.write_text(f"#!/bin/sh\necho I: done >&2\nexec tar -C {programs} -c .\n")
    made.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    server = Server()
    try:
        server.on("/v2/", Answer(200))
        server.on(f"/v2/{python_slim('3.11').removeprefix('docker.io/').replace(':', '/manifests/')}", answer)
        spec = ImageSpec(DebianBase("3.11", force=True), (Run("echo in $0"),))
        image = workshop.run(workshop.build_async(spec, access=Access(server.host)))
    finally:
        server.close()
    assert workshop.text(image, "/etc/passwd").startswith("root:")
    assert workshop.states == ["done", "done"]
    [line] = [line for line in workshop.output.splitlines() if "made here" in line]
    assert line.startswith("Debian is made here instead: ") and why in line


def test_an_imported_image_is_built_on_by_its_name(workshop: Workshop, tmp_path: Path) -> None:
    images = workshop.builder.images
    archive = tmp_path / "image.tar"
    config = ImageConfig(env={"PATH": "/bin"}, labels={"only": "here"})
    export_archive(workshop.store, workshop.ingest(workshop.programs), config, archive)
    with workshop.store.lease("import") as lease:
        imported = import_archive(lease, archive)
        image = images.add(imported.tree_id, imported.config)
        images.publish(image.image_id, "imported")
    assert not image.probed
    spec = ImageSpec(BuiltBase("imported"), (Configure("workdir", ("/work",)), Run("echo in $PWD")))
    built = workshop.run(workshop.build_async(spec))
    assert workshop.output == "in /work\n"
    assert built.probed
    workshop.run(workshop.build_async(ImageSpec(BuiltBase("imported"))))
    assert images.get("imported").probed and images.get("imported").python is None


def test_a_name_keeps_its_image_when_all_else_that_was_known_made_room(workshop: Workshop) -> None:
    images = workshop.builder.images
    image = workshop.build(Run("echo kept > /kept"))
    images.publish(image.image_id, "kept:1")
    workshop.store.delete_record("images", image.image_id)
    again = images.get("kept:1")
    assert (again.image_id, again.tree, again.config) == (image.image_id, image.tree, image.config)
