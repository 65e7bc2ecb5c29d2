import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from farcall.interpreters import Details, details, probe
from farcall.interpreters.probe import details_of_tag

MakeVenv = Callable[[str], Path]


def python(folder: Path) -> str:
    return str(folder / "bin" / "python")


def site_packages(folder: Path) -> Path:
    return folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"


def covers(found: Details, path: str | Path) -> bool:
    return any(str(path) == entry or str(path).startswith(entry + "/") for entry in found.paths)


def test_a_venv_needs_itself_and_its_base(make_venv: MakeVenv) -> None:
    folder = make_venv("env")
    found = details(python(folder))
    assert found.version == ".".join(map(str, sys.version_info[:3]))
    assert found.tag.startswith(f"cp3{sys.version_info.minor}-linux_")
    assert covers(found, folder)
    assert covers(found, os.path.realpath(sys.executable))
    assert covers(found, os.path.realpath(os.__file__))


def test_what_extension_modules_are_called_follows_from_the_tag(make_venv: MakeVenv) -> None:
    found = details(python(make_venv("venv")))
    known = details_of_tag(found.executable, found.version, found.tag)
    assert (known.soabi, known.tag) == (found.soabi, found.tag)
    assert details_of_tag("python", "3.13.1", "cp313t-linux_aarch64-musl").soabi == "cpython-313t-aarch64-linux-musl"


def test_no_path_lies_inside_another(make_venv: MakeVenv) -> None:
    found = details(python(make_venv("env")))
    assert not [a for a in found.paths for b in found.paths if a != b and a.startswith(b + "/")]


def test_links_on_the_way_to_the_executable_are_kept(tmp_path: Path, make_venv: MakeVenv) -> None:
    folder = make_venv("env")
    links = tmp_path / "links"
    links.mkdir()
    (links / "inner").symlink_to(folder / "bin" / "python")
    (tmp_path / "alias").symlink_to(folder)
    assert covers(details(str(tmp_path / "alias" / "bin" / "python")), tmp_path / "alias")
    assert covers(details(str(links / "inner")), links)


def test_a_pth_file_and_pythonpath_add_their_folders(
    tmp_path: Path, make_venv: MakeVenv, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_venv("env")
    for name in ("project", "extra"):
        (tmp_path / name).mkdir()
    (site_packages(folder) / "project.pth").write_text(f"{tmp_path / 'project'}\n")
    assert covers(details(python(folder)), tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "extra")
    assert covers(details(python(folder)), tmp_path / "extra")


def test_editable_installs_are_followed(tmp_path: Path, make_venv: MakeVenv) -> None:
    folder = make_venv("env")
    mapped, project = tmp_path / "mapped" / "package", tmp_path / "with space"
    mapped.mkdir(parents=True)
    project.mkdir()
    # As setuptools writes it: a .pth line imports a module with a MAPPING, which puts a finder on sys.meta_path.
    (site_packages(folder) / "__editable___thing_finder.py").write_text(
        "import sys\n"
        f"MAPPING = {{'package': {str(mapped)!r}}}\n"
        "class _EditableFinder:\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None): return None\n"
        "def install(): sys.meta_path.append(_EditableFinder)\n"
    )
    (site_packages(folder) / "__editable__.thing.pth").write_text(
        "import __editable___thing_finder; __editable___thing_finder.install()\n"
    )
    info = site_packages(folder) / "other-1.dist-info"
    info.mkdir()
    url = str(project).replace(" ", "%20")
    (info / "direct_url.json").write_text(f'{{"url": "file://{url}", "dir_info": {{"editable": true}}}}')
    found = details(python(folder))
    assert covers(found, mapped)
    assert covers(found, project)


@pytest.mark.parametrize("refused", ["/", "/tmp", "/etc", "~"])
def test_folders_that_hold_everything_are_refused(make_venv: MakeVenv, refused: str) -> None:
    refused = os.path.realpath(os.path.expanduser(refused))
    folder = make_venv("env")
    (site_packages(folder) / "wide.pth").write_text(f"{refused}\n")
    found = details(python(folder))
    assert refused not in found.paths
    assert any(f"not given {refused} " in warning for warning in found.warnings)


def test_the_second_time_nothing_runs(make_venv: MakeVenv, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_venv("env")
    first = details(python(folder))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the interpreter was run again")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert details(python(folder)) == first


def test_a_changed_site_packages_is_seen(tmp_path: Path, make_venv: MakeVenv) -> None:
    folder = make_venv("env")
    assert not covers(details(python(folder)), tmp_path / "later")
    (tmp_path / "later").mkdir()
    pth = site_packages(folder) / "later.pth"
    pth.write_text(f"{tmp_path / 'later'}\n")
    assert covers(details(python(folder)), tmp_path / "later")
    (tmp_path / "latest").mkdir()
    pth.write_text(f"{tmp_path / 'latest'}\n")
    found = details(python(folder))
    assert covers(found, tmp_path / "latest")
    assert not covers(found, tmp_path / "later")


def test_a_deleted_venv_is_not_answered_from_the_cache(make_venv: MakeVenv) -> None:
    from farcall.errors import InvalidError

    folder = make_venv("env")
    details(python(folder))
    (folder / "bin" / "python").unlink()
    with pytest.raises(InvalidError, match="cannot be run: No such file"):
        details(python(folder))


def test_an_unreadable_cache_is_made_anew(tmp_path: Path, make_venv: MakeVenv) -> None:
    folder = make_venv("env")
    first = details(python(folder))
    for file in (tmp_path / "xdg" / "cache" / "farcall").glob("interpreter-*.json"):
        file.write_text('{"identity"')
    assert details(python(folder)) == first


def test_a_site_module_that_prints_does_not_disturb(make_venv: MakeVenv) -> None:
    folder = make_venv("env")
    (site_packages(folder) / "sitecustomize.py").write_text("print('hello', end='')\n")
    assert details(python(folder)).version.startswith("3.")


def test_a_shim_is_resolved_to_the_python_it_picks(tmp_path: Path) -> None:
    shim = tmp_path / "shim"
    shim.write_text(f'#!/bin/sh\nexec {os.path.realpath(sys.executable)} "$@"\n')
    shim.chmod(0o755)
    assert details(str(shim)).executable == os.path.realpath(sys.executable)


def test_probe_gives_what_a_container_spec_wants(make_venv: MakeVenv) -> None:
    folder = make_venv("env")
    found = probe(python(folder))
    assert found.executable == python(folder)
    assert (Path(found.runner_path) / "farcall" / "errors.py").exists()
