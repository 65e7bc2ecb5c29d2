"""`farcall profile`: names for servers, in a config file that people write, too."""

import threading
from fcntl import LOCK_EX, flock
from pathlib import Path

import pytest

from farcall.cli.main import USER_ERROR, main


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "farcall" / "config.toml"
    file.parent.mkdir()
    return file


def said(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out + err


def test_profiles_are_added_behind_what_is_there(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text('# mine\nquiet = true\n[profiles.a]\nserver = "ssh://a"')  # no end of line
    assert main(["profile", "add", "b", "ssh://me@b:22"]) == 0
    assert main(["profile", "add", "b", "ssh://c"]) == USER_ERROR
    assert "is in" in said(capsys)
    assert config.read_text().startswith("# mine\nquiet = true\n")
    assert main(["profile", "list"]) == 0
    assert said(capsys) == "a  ssh://a\nb  ssh://me@b:22\n"


@pytest.mark.parametrize("content", ["profiles = 3", "profiles = []", "[[profiles]]", "[profiles]\nx = 3"])
def test_profiles_that_are_no_tables_are_told(config: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(content)
    for words in (["list"], ["list", "--json"], ["add", "b", "ssh://b"]):
        assert main(["profile", *words]) == USER_ERROR
        assert f"in {config} must be a table" in said(capsys)
    assert config.read_text() == content


def test_a_file_that_could_not_be_read_afterwards_stays_as_it_is(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = 'profiles = { a = { server = "ssh://a" } }\n'
    config.write_text(content)
    assert main(["profile", "add", "b", "ssh://b"]) == USER_ERROR
    assert "write it there yourself" in said(capsys)
    assert config.read_text() == content


def test_two_that_add_the_same_name_at_once(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended: list[int] = []
    adding = threading.Thread(target=lambda: ended.append(main(["profile", "add", "b", "ssh://second"])))
    with open(config, "a") as first:
        flock(first, LOCK_EX)
        adding.start()
        adding.join(0.2)  # it waits; one that does not has ended by then
        first.write('[profiles.b]\nserver = "ssh://first"\n')
    adding.join(60)
    assert ended == [USER_ERROR]
    assert "is in" in said(capsys)
    assert config.read_text().count("[profiles.b]") == 1
