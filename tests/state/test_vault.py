"""The vault: what it seals is unreadable without its key, whole, and what it says it is; its key is a private file."""

import resource
import signal
import stat
from pathlib import Path

import pytest

from farcall.errors import CorruptedError, ResourceExhaustedError
from farcall.state.vault import Vault


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "secrets.key"


def test_what_is_sealed_is_opened_by_a_later_vault(key: Path) -> None:
    vault = Vault(key)
    assert not key.exists()  # nothing was sealed yet
    sealed = vault.seal(b"needle", "secret 'a'")
    assert b"needle" not in sealed
    assert vault.seal(b"needle", "secret 'a'") != sealed
    assert Vault(key).open(sealed, "secret 'a'") == b"needle"
    assert Vault(key).open(vault.seal(b"", "x"), "x") == b""


def test_the_key_is_private_made_once_and_shown_nowhere(key: Path) -> None:
    vault = Vault(key)
    vault.seal(b"x", "x")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert [path.name for path in key.parent.iterdir()] == ["secrets.key"]
    first = key.read_bytes()
    assert len(first) == 32
    Vault(key).seal(b"y", "y")
    assert key.read_bytes() == first
    assert first.hex() not in repr(vault) + repr(vars(vault))


def test_a_key_that_others_could_read_is_closed(key: Path) -> None:
    sealed = Vault(key).seal(b"x", "x")
    key.chmod(0o644)
    assert Vault(key).open(sealed, "x") == b"x"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_one_thing_is_not_taken_for_another(key: Path) -> None:
    vault = Vault(key)
    sealed = vault.seal(b"x", "secret 'a'")
    with pytest.raises(CorruptedError, match="secret 'b' cannot be read: it is damaged, or was stored under another"):
        vault.open(sealed, "secret 'b'")


def test_damage_is_found_at_every_byte(key: Path) -> None:
    vault = Vault(key)
    sealed = vault.seal(b"needle", "x")
    for position in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[position] ^= 1
        for broken in (bytes(damaged), sealed[:position]):
            with pytest.raises(CorruptedError, match="x ") as raised:
                vault.open(broken, "x")
            assert "needle" not in str(raised.value)


def test_a_lost_or_exchanged_key_is_named_and_no_new_one_made(key: Path) -> None:
    sealed = Vault(key).seal(b"x", "secret 'a'")
    kept = key.rename(key.with_name("kept"))
    with pytest.raises(CorruptedError, match=r"secret 'a' cannot be read: the key file .*secrets\.key is gone"):
        Vault(key).open(sealed, "secret 'a'")
    assert not key.exists()
    Vault(key).seal(b"y", "y")
    with pytest.raises(CorruptedError, match="stored under another key"):
        Vault(key).open(sealed, "secret 'a'")
    kept.rename(key)
    assert Vault(key).open(sealed, "secret 'a'") == b"x"
    key.write_bytes(b"short")
    with pytest.raises(CorruptedError, match="has 5 bytes in place of 32"):
        Vault(key).open(sealed, "secret 'a'")


def test_a_full_disk_leaves_no_half_a_key(key: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(ResourceExhaustedError, match="no room"):
            Vault(key).seal(b"x", "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(key.parent.iterdir()) == []
    assert Vault(key).open(Vault(key).seal(b"x", "x"), "x") == b"x"
