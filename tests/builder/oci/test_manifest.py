"""Manifests and configurations as registries may have them: whatever stands there, the error is ours."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from farcall.builder.oci.authentication import parse_challenges
from farcall.builder.oci.manifest import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    read_configuration,
    read_document,
    write_configuration,
)
from farcall.builder.oci.platform import Platform
from farcall.builder.oci.reference import parse
from farcall.errors import ContentError, InvalidError, UnimplementedError
from farcall.spec.image import ImageConfig
from tests.builder.oci.images import digest_of

DIGEST = digest_of(b"x")
ANYTHING = some.sampled_from(
    [
        None,
        True,
        0,
        -1,
        2**70,
        1.5,
        "",
        "x",
        "A=b",
        "\ud800",
        [],
        ["x"],
        ["A=b", None],
        [[1]],
        {},
        {"os": "linux"},
        {"x": 1},
    ]
)
DESCRIPTOR = some.fixed_dictionaries(
    {},
    optional={
        "mediaType": some.sampled_from([OCI_CONFIG, OCI_LAYER, OCI_MANIFEST]) | ANYTHING,
        "digest": some.just(DIGEST) | ANYTHING,
        "size": some.integers(0, 9) | ANYTHING,
        "platform": ANYTHING,
        "annotations": ANYTHING,
    },
)
DOCUMENT = some.fixed_dictionaries(
    {},
    optional={
        "schemaVersion": some.just(2) | ANYTHING,
        "mediaType": some.just(OCI_MANIFEST) | ANYTHING,
        "config": DESCRIPTOR | ANYTHING,
        "layers": some.lists(DESCRIPTOR, max_size=3) | ANYTHING,
        "manifests": some.lists(DESCRIPTOR, max_size=3) | ANYTHING,
    },
)
CONFIGURATION = some.fixed_dictionaries(
    {},
    optional={
        "os": ANYTHING,
        "architecture": ANYTHING,
        "config": some.fixed_dictionaries(
            {},
            optional=dict.fromkeys(("Env", "WorkingDir", "Entrypoint", "Cmd", "Shell", "User", "Labels"), ANYTHING),
        ),
        "rootfs": some.fixed_dictionaries({}, optional={"diff_ids": some.just([DIGEST]) | ANYTHING}),
    },
)


@given(some.binary(max_size=64) | DOCUMENT.map(lambda document: json.dumps(document).encode()))
def test_any_document_is_read_or_refused(data: bytes) -> None:
    try:
        read_document(data, "name")
    except (ContentError, UnimplementedError) as error:
        assert "name" in str(error)


@given(CONFIGURATION.map(lambda document: json.dumps(document).encode()))
def test_any_configuration_is_read_or_refused(data: bytes) -> None:
    try:
        read_configuration(data, 1, "name")
    except ContentError as error:
        assert "name" in str(error)


@given(some.text(max_size=40) | some.text("aA0./:@_-[]", max_size=20))
def test_any_name_is_read_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except InvalidError:
        return
    assert parse(str(found)) == found


@given(some.text(max_size=60) | some.text('Basicrealm ="\\,x', max_size=40))
def test_any_challenge_is_read(text: str) -> None:
    assert all(challenge.scheme for challenge in parse_challenges([text]))


@pytest.mark.parametrize("empty", [None, [], {}])
def test_what_go_writes_for_nothing(empty: object) -> None:
    run = dict.fromkeys(("Env", "Entrypoint", "Cmd", "Shell"), [] if empty == {} else empty) | {"Labels": empty or None}
    document = {"os": "linux", "architecture": "amd64", "config": run, "rootfs": {"diff_ids": None}}
    assert read_configuration(json.dumps(document).encode(), 0, "name").config == ImageConfig()
    assert read_configuration(b'{"config": null, "rootfs": null}', 0, "name").config == ImageConfig()


def test_the_same_configuration_is_the_same_bytes() -> None:
    config = ImageConfig(cmd=("true",))
    written = write_configuration(config, Platform("linux", "amd64"), ())
    assert b'"WorkingDir":"/"' in written
    assert msgspec.msgpack.encode(read_configuration(written, 0, "name").config) == msgspec.msgpack.encode(config)


def test_a_configuration_comes_back_as_it_was() -> None:
    config = ImageConfig({"A": "b=c", "E": ""}, "/srv", ("a", "b"), ("c",), ("/bin/bash", "-c"), "u:g", {"x": "y"})
    platform = Platform("linux", "arm64", "v8")
    found = read_configuration(write_configuration(config, platform, (DIGEST,)), 1, "name")
    assert (found.config, found.platform, found.diff_ids) == (config, platform, (DIGEST,))
