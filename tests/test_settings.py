import os
import pwd
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from farcall import settings
from farcall.errors import InvalidError
from farcall.settings import amounts
from farcall.settings.paths import MAX_SOCKET_PATH


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "config")}


def write_config(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config" / "farcall" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return file


def test_defaults(tmp_path: Path, environ: dict[str, str]) -> None:
    found = settings.load({}, tmp_path, environ)
    assert (found.runtime, found.compat, found.quiet, found.python) == ("native", True, False, None)
    assert {value.origin for value in found.values.values()} == {"default"}
    assert found.warnings == []


def test_each_place_goes_before_the_next(tmp_path: Path, environ: dict[str, str]) -> None:
    config = write_config(
        tmp_path, '[profiles.box]\nruntime = "process"\nquiet = true\ntraceback = "full"\ncompat = false\n'
    )
    project = tmp_path / "pyproject.toml"
    project.write_text('[tool.farcall]\nprofile = "box"\nquiet = false\ntraceback = "full"\ncompat = true\n')
    environ |= {"FARCALL_TRACEBACK": "full", "FARCALL_COMPAT": "off"}
    found = settings.load({"compat": True, "quiet": None}, tmp_path, environ)
    origins = {name: value.origin for name, value in found.values.items()}
    assert origins == {
        "profile": str(project),
        "server": "default",
        "ssh": "default",
        "python": "default",
        "runtime": f"[profiles.box] of {config}",
        "compat": "flag --compat",
        "local": "default",
        "quiet": str(project),
        "traceback": "environment FARCALL_TRACEBACK",
        "registry": "default",
        "insecure_registries": "default",
        "object_store": "default",
        "object_store_endpoint": "default",
        "simulate_gpu": "default",
        "map_memory": "default",
        "queue_inputs": "default",
        "queue_memory": "default",
        "app_queue_inputs": "default",
        "app_queue_memory": "default",
        "listen": "default",
        "own_worker": "default",
        "worker_lease": "default",
        "peer_listen": "default",
        "results_kept": "default",
        "results_size": "default",
    }
    assert (found.profile, found.runtime, found.compat, found.quiet) == ("box", "process", True, False)


def test_an_object_store_is_told_to_the_server(tmp_path: Path, environ: dict[str, str]) -> None:
    found = settings.load({}, tmp_path, environ)
    assert (found.object_store, found.object_store_endpoint, found.of_server()) == ("", "", {})
    set_to = {"FARCALL_OBJECT_STORE": "s3://bucket/prefix", "FARCALL_OBJECT_STORE_ENDPOINT": "http://box:9000"}
    found = settings.load({}, tmp_path, environ | set_to)
    assert (found.object_store, found.object_store_endpoint) == ("s3://bucket/prefix", "http://box:9000")
    assert found.of_server() == set_to


def test_registries(tmp_path: Path, environ: dict[str, str]) -> None:
    found = settings.load({}, tmp_path, environ)
    assert (found.registry, found.insecure_registries) == ("docker.io", ())
    set_to = {"FARCALL_REGISTRY": "mirror.example/hub", "FARCALL_INSECURE_REGISTRIES": "a.example, b.example:5000,"}
    found = settings.load({}, tmp_path, environ | set_to)
    assert (found.registry, found.insecure_registries) == ("mirror.example/hub", ("a.example", "b.example:5000"))


@pytest.mark.parametrize(
    ("read", "text", "is_"),
    [
        (amounts.count, "50_000", 50_000),
        (amounts.seconds, "90s", 90.0),
        (amounts.seconds, "1.5 h", 5400.0),
        (amounts.seconds, "7d", 604_800.0),
        (amounts.size, "1B", 1),
        (amounts.size, "512MiB", 2**29),
        (amounts.size, "1.5 GiB", 3 * 2**29),
        (amounts.memory, "2GiB", 2**31),
        (amounts.memory, "50%", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2),
    ],
)
def test_amounts(read: Callable[[str], float], text: str, is_: float) -> None:
    assert read(text) == is_


@pytest.mark.parametrize(
    ("read", "texts"),
    [
        (amounts.count, ["0", "-1", "1.5", "many", "", "1k", "nan"]),
        (amounts.seconds, ["0s", "7", "7 weeks", "-1d", "inf", "d"]),
        (amounts.size, ["0B", "0.5B", "10GB", "10", "-1GiB", "50%"]),
        (amounts.memory, ["0%", "101%", "%", "10GB", "5"]),
    ],
)
def test_amounts_that_are_none(read: Callable[[str], float], texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(ValueError, match=r"^a "):
            read(text)


def test_what_is_set_for_the_server_goes_to_it(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.farcall]\nresults_kept = "12h"\n')
    found = settings.load({"results_size": "1GiB"}, tmp_path, environ)
    assert (found.results_kept, found.results_size) == (43_200.0, 2**30)
    assert found.of_server() == {"FARCALL_RESULTS_KEPT": "12h", "FARCALL_RESULTS_SIZE": "1GiB"}
    assert settings.load({}, tmp_path.parent, environ).of_server() == {}
    with pytest.raises(InvalidError, match=r"results_kept must be a time, as 90s.*not 'for ever' \(environment"):
        settings.load({}, tmp_path, environ | {"FARCALL_RESULTS_KEPT": "for ever"})


def test_the_profile_can_come_from_the_environment(tmp_path: Path, environ: dict[str, str]) -> None:
    write_config(tmp_path, "[profiles.a]\nquiet = true\n[profiles.b]\n")
    assert settings.load({}, tmp_path, environ | {"FARCALL_PROFILE": "a"}).quiet is True
    assert settings.load({"profile": "b"}, tmp_path, environ | {"FARCALL_PROFILE": "a"}).quiet is False


def test_an_unknown_profile_lists_the_known_ones(tmp_path: Path, environ: dict[str, str]) -> None:
    write_config(tmp_path, "[profiles.a]\n[profiles.b]\n")
    with pytest.raises(InvalidError, match=r"no profile 'c' \(flag --profile\).*profiles there: a, b"):
        settings.load({"profile": "c"}, tmp_path, environ)


@pytest.mark.parametrize(
    ("name", "value"), [("FARCALL_QUIET", "perhaps"), ("FARCALL_RUNTIME", "docker"), ("FARCALL_TRACEBACK", "long")]
)
def test_a_value_of_the_wrong_kind_names_its_place(
    tmp_path: Path, environ: dict[str, str], name: str, value: str
) -> None:
    with pytest.raises(InvalidError, match=rf"must be .* not '{value}' \(environment {name}\)"):
        settings.load({}, tmp_path, environ | {name: value})
    (tmp_path / "pyproject.toml").write_text("[tool.farcall]\npython = 3.12\n")
    with pytest.raises(InvalidError, match=r"python must be a string, not 3\.12 \(\[tool\.farcall\] of"):
        settings.load({}, tmp_path, environ)


def test_unknown_names_warn_with_the_nearest(tmp_path: Path, environ: dict[str, str]) -> None:
    write_config(tmp_path, "profile = 'x'\n[profiles.a]\nruntme = 'native'\n")
    (tmp_path / "pyproject.toml").write_text("[tool.farcall]\ncompatt = true\nzzz = 1\n")
    found = settings.load(
        {"profile": "a"}, tmp_path, environ | {"FARCALL_RUNTIM": "native", "FARCALL_OTHER_THING": "1"}
    )
    text = "\n".join(found.warnings)
    assert "'runtme'" in text
    assert "did you mean runtime?" in text
    assert "'compatt'" in text
    assert "'zzz'" in text
    assert "FARCALL_RUNTIM: did you mean FARCALL_RUNTIME?" in text
    assert "FARCALL_OTHER_THING" not in text
    assert len(found.warnings) == 5


@pytest.mark.parametrize("text", ["[profiles", "\x00"])
def test_a_broken_config_file_is_named(tmp_path: Path, environ: dict[str, str], text: str) -> None:
    file = write_config(tmp_path, text)
    with pytest.raises(InvalidError, match=str(file)):
        settings.load({}, tmp_path, environ)


def test_xdg_directories_are_followed_and_private(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "d"), "XDG_CACHE_HOME": "relative/is/ignored"}
    found = settings.paths(environ)
    assert found.state == tmp_path / ".local" / "state" / "farcall"
    assert found.data == tmp_path / "d" / "farcall"
    assert found.cache == tmp_path / ".cache" / "farcall"
    assert found.server_socket.parent == found.state
    for folder in (found.state, found.data, found.cache, found.launcher_state):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not found.config.exists()


def test_two_state_directories_have_two_sockets(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(run)}
    assert settings.paths(environ).server_socket == run / "farcall" / "server.sock"
    chosen = settings.paths(environ | {"FARCALL_STATE_DIR": str(tmp_path / "s")})
    assert chosen.server_socket == tmp_path / "s" / "server.sock"
    assert chosen.state == tmp_path / "s"


def test_a_runtime_directory_that_is_gone_is_not_used(tmp_path: Path) -> None:
    found = settings.paths({"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "gone")})
    assert found.server_socket.parent == found.state


@pytest.mark.skipif(os.getuid() != 0, reason="needs to give a directory away")
def test_a_runtime_directory_of_another_user_is_not_used(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    os.chown(run, 12345, 12345)
    found = settings.paths({"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(run)})
    assert found.server_socket.parent == found.state


def test_a_socket_path_never_exceeds_what_the_kernel_takes(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    found = settings.paths({"HOME": str(tmp_path), "FARCALL_STATE_DIR": str(long)})
    assert found.state == long
    path = found.server_socket
    try:
        assert len(os.fsencode(path)) <= MAX_SOCKET_PATH
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
        other = settings.paths({"HOME": str(tmp_path), "FARCALL_STATE_DIR": str(long) + "y"})
        assert other.runtime != found.runtime
        other.runtime.rmdir()
        path.parent.chmod(0o755)  # no longer private: whoever could write there could take the socket's place
        with pytest.raises(InvalidError, match="too long for a socket"):
            settings.paths({"HOME": str(tmp_path), "FARCALL_STATE_DIR": str(long)})
    finally:
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidError, match="cannot make its directory"):
        _ = settings.paths({"HOME": str(tmp_path), "FARCALL_STATE_DIR": str(tmp_path / "file" / "below")}).state


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """This user is not in the password database."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "relative"}, {"FARCALL_STATE_DIR": "~/state"}])
def test_without_a_home_directory_nothing_is_guessed(homeless: None, environ: dict[str, str]) -> None:
    with pytest.raises(
        InvalidError, match=rf"HOME is not set and uid {os.getuid()} has no home.*set HOME or FARCALL_STATE_DIR"
    ):
        settings.paths(environ)


def test_a_state_directory_is_enough_without_a_home_directory(homeless: None, tmp_path: Path) -> None:
    state = tmp_path / "state"
    for environ in ({"FARCALL_STATE_DIR": str(state / "farcall")}, {"XDG_STATE_HOME": str(state)}):
        found = settings.paths(environ)
        assert (found.state, found.data, found.cache) == tuple(
            state / "farcall" / name for name in ("", "data", "cache")
        )
        assert settings.load({}, tmp_path, environ).warnings == []


def test_the_password_database_knows_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = pwd.struct_passwd(("me", "x", os.getuid(), 0, "", str(tmp_path), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry)
    assert settings.paths({"FARCALL_STATE_DIR": "~/mine"}).state == tmp_path / "mine"
    assert settings.paths({}).cache == tmp_path / ".cache" / "farcall"


@pytest.mark.root("gives a directory away")
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_state_directory_of_another_user_is_named(mode: int) -> None:
    program = (
        "import os, sys; from farcall import settings; os.setuid(12345)\n"
        "try: settings.paths({'FARCALL_STATE_DIR': sys.argv[1]}).server_socket\n"
        "except settings.paths.__globals__['InvalidError'] as error: print(error)"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, mode)
        done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
        assert f"uid 12345 may not use farcall's directory {folder}: it belongs to uid 0." in done.stdout
        assert "Set FARCALL_STATE_DIR to a directory of your own" in done.stdout
        done = subprocess.run(
            [sys.executable, "-c", program, f"{folder}/below"], capture_output=True, text=True, check=True
        )
        assert f"cannot make its directory {folder}/below: Permission denied" in done.stdout
