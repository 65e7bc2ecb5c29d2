"""Registries for the tests of a module, a fake home so that nobody's own logins count, and time that costs none."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from farcall.content.attempts import Timing
from tests.builder.oci.servers import Server, docker_registry, make_certificate


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory without logins; none of the variables that lead to others."""
    made = tmp_path / "home"
    made.mkdir()
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(made))
    return made


@pytest.fixture
def server() -> Iterator[Server]:
    """A registry that answers as the test says."""
    made = Server()
    yield made
    made.close()


@pytest.fixture
def other_server() -> Iterator[Server]:
    """Another host."""
    made = Server()
    yield made
    made.close()


@dataclass
class Patience:
    """A Timing whose pauses are noted, not waited for. `hasty` is one that soon takes silence for a hang."""

    slept: list[float] = field(default_factory=list[float])

    @property
    def timing(self) -> Timing:
        return Timing(sleep=lambda stop, seconds: self.slept.append(seconds), random=lambda: 1.0)

    @property
    def hasty(self) -> Timing:
        return self.timing._replace(read=0.5)


@pytest.fixture
def patience() -> Patience:
    return Patience()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key with its certificate; the certificate alone is `certificate.pem` beside it."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real registry, open to everybody: its host:port."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host
