"""What is in the distributions."""

import re
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Protocol

import farcall

REPOSITORY = Path(__file__).resolve().parents[2]


class Built(Protocol):
    sdist: Path
    wheel: Path


def package_files(built: Built) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of the package, path to content, as the sdist has them and as the wheel has them."""
    with tarfile.open(built.sdist) as archive:
        in_sdist = {
            found[1]: content.read()
            for member in archive
            if (found := re.fullmatch(r"[^/]+/src/(farcall/.*)", member.name))
            and (content := archive.extractfile(member))
        }
    with zipfile.ZipFile(built.wheel) as archive:
        in_wheel = {name: archive.read(name) for name in archive.namelist() if name.startswith("farcall/")}
    return in_sdist, in_wheel


def test_sdist_and_wheel_hold_the_same_package(distributions: Built) -> None:
    in_sdist, in_wheel = package_files(distributions)
    assert sorted(in_sdist) == sorted(in_wheel)
    assert in_sdist == in_wheel


def test_the_package_is_whole(distributions: Built) -> None:
    _, in_wheel = package_files(distributions)
    source = REPOSITORY / "src"
    expected = {
        str(path.relative_to(source))
        for path in (source / "farcall").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert set(in_wheel) == expected
    assert "farcall/py.typed" in in_wheel


def test_metadata(distributions: Built) -> None:
    with zipfile.ZipFile(distributions.wheel) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(archive.read(next(n for n in names if n.endswith("METADATA"))).decode())
    assert metadata["Version"] == farcall.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("licenses/LICENSE") for name in names)
    required = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert sorted(re.split(r"[^a-z]", r)[0] for r in required) == [
        "cloudpickle",
        "cryptography",
        "httpx",
        "msgspec",
        "obstore",
        "uv",
        "uvloop",
        "watchfiles",
        "zstandard",
    ]


def test_the_wheel_is_pure(distributions: Built) -> None:
    assert distributions.wheel.name.endswith("-py3-none-any.whl")
