import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from farcall.errors import InvalidError
from farcall.interpreters import choose, is_own

MakeVenv = Callable[[str], Path]


def script(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)
    return path


def test_without_any_project_our_own_is_chosen(tmp_path: Path) -> None:
    assert choose(None, tmp_path, {}) == (sys.executable, "farcall's own")


def test_dot_venv_is_found_upward(tmp_path: Path, make_venv: MakeVenv) -> None:
    folder = make_venv(".venv")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert choose(None, below, {}) == (str(folder / "bin" / "python"), ".venv")


def test_active_venv_goes_before_dot_venv_and_the_flag_before_both(tmp_path: Path, make_venv: MakeVenv) -> None:
    make_venv(".venv")
    active, named = make_venv("active"), make_venv("named")
    environ = {"VIRTUAL_ENV": str(active)}
    assert choose(None, tmp_path, environ) == (str(active / "bin" / "python"), "active venv")
    assert choose(str(named), tmp_path, environ) == (str(named / "bin" / "python"), "--python")
    assert choose("named/bin/python", tmp_path, environ).executable == str(named / "bin" / "python")


def test_conda_counts_as_an_active_environment(tmp_path: Path, make_venv: MakeVenv) -> None:
    active = make_venv("conda")
    assert choose(None, tmp_path, {"CONDA_PREFIX": str(active)}).reason == "active conda environment"


def test_pyproject_names_a_path_relative_to_itself(tmp_path: Path, make_venv: MakeVenv) -> None:
    make_venv("env")
    (tmp_path / "pyproject.toml").write_text('[tool.farcall]\npython = "env"\n')
    below = tmp_path / "sub"
    below.mkdir()
    assert choose(None, below, {}) == (str(tmp_path / "env" / "bin" / "python"), "pyproject.toml")


def test_nearest_pyproject_ends_the_search(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.farcall]\npython = "/nowhere"\n')
    below = tmp_path / "sub"
    below.mkdir()
    (below / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert choose(None, below, {}).reason == "farcall's own"


@pytest.mark.parametrize("content", ["[tool.farcall\n", "[tool.farcall]\npython = 3\n"])
def test_bad_pyproject_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "pyproject.toml").write_text(content)
    with pytest.raises(InvalidError, match=r"pyproject\.toml"):
        choose(None, tmp_path, {})


def test_a_version_is_found_on_path(tmp_path: Path) -> None:
    version = f"3.{sys.version_info.minor}"
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / f"python{version}").symlink_to(os.path.realpath(sys.executable))
    found = choose(version, tmp_path, {"PATH": str(bin_folder), "HOME": str(tmp_path)})
    assert found == (str(bin_folder / f"python{version}"), "--python")


def test_a_version_is_found_in_pyenv_newest_first(tmp_path: Path) -> None:
    version = f"3.{sys.version_info.minor}"
    for patch in ("2", "10"):
        place = tmp_path / ".pyenv" / "versions" / f"{version}.{patch}" / "bin"
        place.mkdir(parents=True)
        (place / f"python{version}").symlink_to(os.path.realpath(sys.executable))
    found = choose(version, tmp_path, {"PATH": "", "HOME": str(tmp_path)}).executable
    assert f"{version}.10" in found


def test_a_version_is_found_among_uvs(tmp_path: Path) -> None:
    version = f"3.{sys.version_info.minor}"
    place = tmp_path / ".local" / "share" / "uv" / "python" / f"cpython-{version}.9-linux-x86_64-gnu" / "bin"
    place.mkdir(parents=True)
    (place / f"python{version}").symlink_to(os.path.realpath(sys.executable))
    assert choose(version, tmp_path, {"PATH": "", "HOME": str(tmp_path)}).executable == str(place / f"python{version}")


def test_an_exact_version_is_that_version(tmp_path: Path) -> None:
    version = f"3.{sys.version_info.minor}"
    (tmp_path / f"python{version}").symlink_to(os.path.realpath(sys.executable))
    environ = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    exact = ".".join(map(str, sys.version_info[:3]))
    assert choose(exact, tmp_path / "x", environ).executable == str(tmp_path / f"python{version}")
    with pytest.raises(InvalidError, match="no Python"):
        choose(f"{exact}0", tmp_path / "x", environ)


def test_a_version_that_is_too_old_is_not_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"Python 3\.10 is too old \(--python\)"):
        choose("3.10", tmp_path, {"PATH": "", "HOME": str(tmp_path)})


def test_the_profiles_python_comes_last(tmp_path: Path, make_venv: MakeVenv) -> None:
    last = make_venv("last")
    assert choose(None, tmp_path, {}, last=str(last)) == (str(last / "bin" / "python"), "profile")
    make_venv(".venv")
    assert choose(None, tmp_path, {}, last=str(last)).reason == ".venv"


def test_a_version_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"uv python install 3\.99"):
        choose("3.99", tmp_path, {"PATH": "", "HOME": str(tmp_path)})


def test_missing_broken_and_old_interpreters_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="no Python at nowhere"):
        choose("nowhere", tmp_path, {"PATH": ""})
    broken = script(tmp_path / "broken", "#!/bin/sh\necho cannot start >&2\nexit 3\n")
    with pytest.raises(InvalidError, match="cannot start"):
        choose(str(broken), tmp_path, {})
    report = r'{"version": "3.8.1", "implementation": "cpython", "executable": "x"}'
    old = script(tmp_path / "old", f"#!/bin/sh\necho 'farcall-interpreter:{report}'\n")
    with pytest.raises(InvalidError, match=r"is Python 3\.8\.1; farcall needs 3\.11"):
        choose(str(old), tmp_path, {})
    with pytest.raises(InvalidError, match=r"active environment .*gone \(VIRTUAL_ENV\)"):
        choose(None, tmp_path, {"VIRTUAL_ENV": str(tmp_path / "gone")})


def test_a_venv_whose_base_was_removed_is_named(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(tmp_path / "gone" / "python3")
    with pytest.raises(InvalidError, match="which does not exist"):
        choose(None, tmp_path, {})


@pytest.mark.skipif(os.getuid() != 0, reason="needs to give a file away")
def test_a_venv_of_another_user_is_passed_over(tmp_path: Path, make_venv: MakeVenv) -> None:
    folder = make_venv(".venv")
    os.chown(folder / "bin" / "python", 12345, 12345, follow_symlinks=False)
    assert choose(None, tmp_path, {}).reason == "farcall's own"


def test_two_names_of_one_environment_are_one(tmp_path: Path, make_venv: MakeVenv) -> None:
    folder = make_venv("one")
    program = (
        "import sys; from farcall.interpreters import is_own; "
        "print(is_own(sys.argv[1] + '/python3'), is_own(sys.argv[2]))"
    )
    import farcall.interpreters

    source = str(Path(farcall.interpreters.__file__).parents[2])
    done = subprocess.run(
        [folder / "bin" / "python", "-c", program, folder / "bin", os.path.realpath(sys.executable)],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["True", "False"], done.stderr
    assert is_own(sys.executable)
