"""Names of images: what they mean, and what is none."""

import pytest

from farcall.builder.oci.reference import Reference, parse, python_slim
from farcall.errors import InvalidError

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("python", Reference("docker.io", "library/python", "latest")),
        ("python:3.12-slim", Reference("docker.io", "library/python", "3.12-slim")),
        ("library/python", Reference("docker.io", "library/python", "latest")),
        ("owner/name:V1.0_x", Reference("docker.io", "owner/name", "V1.0_x")),
        ("docker.io/python", Reference("docker.io", "library/python", "latest")),
        ("index.docker.io/owner/name", Reference("docker.io", "owner/name", "latest")),
        ("ghcr.io/owner/deep/name:1", Reference("ghcr.io", "owner/deep/name", "1")),
        ("localhost/name", Reference("localhost", "name", "latest")),
        ("localhost:5000/name", Reference("localhost:5000", "name", "latest")),
        ("host:5000", Reference("docker.io", "library/host", "5000")),
        ("[::1]:5000/name", Reference("[::1]:5000", "name", "latest")),
        ("Registry.Example/name", Reference("registry.example", "name", "latest")),
        (f"name@sha256:{HEX}", Reference("docker.io", "library/name", "", f"sha256:{HEX}")),
        (f"quay.io/a/b:t@sha256:{HEX}", Reference("quay.io", "a/b", "t", f"sha256:{HEX}")),
        ("a/b__c/d-e--f/g.h", Reference("docker.io", "a/b__c/d-e--f/g.h", "latest")),
    ],
)
def test_what_a_name_means(text: str, means: Reference) -> None:
    assert parse(text) == means
    assert parse(str(means)) == means


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("https://ghcr.io/owner/name", "no URL"),
        ("Owner/name", "lower case: 'library/owner/name'|lower case: 'owner/name'"),
        ("ghcr.io/Owner/name", "lower case: 'owner/name'"),
        ("ghcr.io/", "empty"),
        ("ghcr.io//name", "empty"),
        ("name:", "no tag"),
        ("name:-x", "no tag"),
        ("name:" + "x" * 129, "no tag"),
        ("name@sha256:abc", "no digest"),
        ("name@", "no digest"),
        ("name@md5:" + "a" * 32, "no digest"),
        ("name with space", "'name with space'"),
        ("a_-b", "a_-b"),
        ("-host.example/name", "no host"),
        ("host.example:x/name", "no host"),
        ("name/" + "x" * 260, "longer than 255"),
        ("ghcr.io/../../etc", r"'\.\.'"),
        ("näme", "näme"),
    ],
)
def test_what_is_no_name_says_why(text: str, why: str) -> None:
    with pytest.raises(InvalidError, match=why) as raised:
        parse(text)
    assert "[registry/]repository[:tag][@digest]" in str(raised.value)


def test_the_official_python_image() -> None:
    assert python_slim("3.12.4") == "docker.io/library/python:3.12.4-slim-bookworm"
