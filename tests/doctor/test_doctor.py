"""The doctor on this machine as it is, and as it would be with less."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from farcall.doctor import Finding, apparmor_profile, probe, run
from farcall.doctor.namespaces import refusal
from farcall.doctor.packages import Package, install_line
from farcall.doctor.trial import Trial, attempt
from tests.conftest import descendants, open_descriptors

RESTRICT = Path(__file__).resolve().parent.parent / "hosts" / "restrict.py"
PRINT_JSON = "import sys; from farcall.doctor import run; sys.exit(run(sys.stdout, json=True))"


def restricted(*kind: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The doctor's exit code, and its findings by name, under a restriction."""
    command = [sys.executable, str(RESTRICT), *kind, "--", sys.executable, "-c", PRINT_JSON]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)
    assert done.stderr == ""
    return done.returncode, {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    return probe()


def named(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_every_finding_is_complete(findings: list[Finding]) -> None:
    assert len({finding.name for finding in findings}) == len(findings)
    for finding in findings:
        assert finding.purpose
        assert "\n" not in finding.detail + finding.remedy
        if finding.status == "ok":
            assert finding.remedy == ""
        else:
            assert finding.detail or finding.remedy


def test_it_covers_what_farcall_can_use(findings: list[Finding]) -> None:
    names = " ".join(finding.name for finding in findings)
    for wanted in (
        "user namespaces",
        "cgroup namespaces",
        "cpu controller",
        "images",
        "overlay",
        "idmapped mounts",
        "EROFS",
        "fs-verity",
        "FUSE passthrough",
        "seccomp",
        "Landlock",
        "pidfd",
        "memfd",
        "userfaultfd",
        *("slirp4netns", "newuidmap", "nft", "runsc", "criu", "mmdebstrap", "uv"),
        "Python {}.{}".format(*sys.version_info),
    ):
        assert wanted in names


def children() -> set[str]:
    return set(Path("/proc/self/task", str(os.getpid()), "children").read_text().split())


def test_it_is_quick_and_leaves_nothing() -> None:
    before = open_descriptors()
    # The test process adopts orphans (tests/conftest.py): what earlier tests have left may become children any time.
    others = {str(pid) for pid in descendants()} | children()
    started = time.monotonic()
    probe()
    assert time.monotonic() - started < 20
    assert "farcall-doctor" not in Path("/proc/self/mountinfo").read_text()
    assert open_descriptors() <= before
    assert children() <= others


def test_what_hangs_is_given_up() -> None:
    started = time.monotonic()
    trial = attempt(lambda: time.sleep(60), seconds=0.05)
    assert not trial.ok
    assert "no answer" in trial.text
    assert time.monotonic() - started < 30


def test_what_dies_is_a_failure() -> None:
    assert attempt(lambda: os._exit(3)) == Trial(False, "it ended without an answer")
    assert attempt(lambda: os.close(-1)).text == "Bad file descriptor (EBADF)"


def test_the_table_has_every_finding_and_its_remedy_in_one_line(findings: list[Finding]) -> None:
    stream = io.StringIO()
    run(stream)
    table = stream.getvalue()
    assert "\x1b" not in table
    for finding in findings:
        assert finding.name in table
        assert finding.remedy in table


def test_json_says_the_same(findings: list[Finding]) -> None:
    stream = io.StringIO()
    status = run(stream, json=True)
    said = json.loads(stream.getvalue())
    assert [finding["name"] for finding in said["findings"]] == [finding.name for finding in findings]
    assert said["containers"] == (status == 0)


def test_where_namespaces_are_refused_there_are_no_containers() -> None:
    status, findings = restricted("refuse-namespaces")
    assert status == 3
    assert findings["user namespaces"]["status"] == "missing"
    assert "--runtime process" in findings["user namespaces"]["remedy"]
    for kind in ("mount", "pid", "net", "ipc", "uts"):
        assert findings[f"{kind} namespaces"]["status"] == "missing"


def test_where_proc_is_read_only_it_says_so() -> None:
    status, findings = restricted("readonly-proc")
    assert status == 3
    assert findings["user namespaces"]["detail"] == "/proc is read-only"
    assert findings["user namespaces"]["remedy"].endswith("mount -o remount,rw /proc")


def test_where_cgroups_are_read_only_the_controllers_are_missing() -> None:
    status, findings = restricted("no-cgroup")
    assert status == 0
    for controller in ("cpu", "memory", "pids"):
        assert findings[f"{controller} controller"]["status"] == "missing"
        assert findings[f"{controller} controller"]["remedy"]


def test_where_the_kernel_has_no_overlay() -> None:
    _, findings = restricted("lacks", "overlay")
    assert findings["images"]["status"] == "limited"
    assert findings["images"]["remedy"].endswith("modprobe overlay")
    assert findings["overlay"]["status"] == "missing"
    assert findings["overlay"]["remedy"].endswith("modprobe overlay")


@pytest.mark.root("mounts EROFS")
@pytest.mark.kernel("erofs", "trees are mounted with it")
def test_it_says_how_images_are_mounted_and_why() -> None:
    best = named(probe(), "images")
    assert (best.status, best.detail) == ("ok", "EROFS over shared files")
    _, findings = restricted("lacks", "erofs")
    assert findings["images"]["status"] == "limited"
    assert findings["images"]["detail"] == "directories of links to shared files: this kernel has no EROFS"
    assert findings["images"]["remedy"].endswith("modprobe erofs")


@pytest.mark.root("to become another user")
def test_an_ordinary_user_gets_the_same_table() -> None:
    here = {finding.name for finding in probe() if finding.group != "workers"}  # each user has a server of its own
    if not os.access(sys.executable, os.X_OK) or not is_world_readable(Path(sys.executable).resolve()):
        pytest.skip(f"another user may not run {sys.executable}")
    _, findings = restricted("user", "61234")
    assert {name for name in here if not name.startswith("Python")} <= findings.keys()


def is_world_readable(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in path.parents)


@pytest.mark.root("to mount an image")
@pytest.mark.kernel("erofs", "to mount the doctor's image")
def test_the_erofs_image_is_one_that_kernels_mount(findings: list[Finding]) -> None:
    major, minor = os.uname().release.split(".")[:2]
    if (int(major), int(minor)) < (6, 12):
        pytest.skip("needs Linux 6.12 to mount an image from a file")
    assert named(findings, "EROFS from a file").status == "ok"


@pytest.mark.parametrize(
    ("settings", "root", "remedy"),
    [
        ({"user.max_user_namespaces": "0"}, True, "sysctl -w user.max_user_namespaces="),
        ({"kernel.unprivileged_userns_clone": "0"}, False, "sysctl -w kernel.unprivileged_userns_clone=1"),
        ({"kernel.apparmor_restrict_unprivileged_userns": "1"}, False, "apparmor_parser -r /etc/apparmor.d/farcall"),
        ({"kernel.apparmor_restrict_unprivileged_userns": "1"}, True, "--runtime process"),
        ({}, False, "--runtime process"),
    ],
)
def test_the_remedy_is_that_of_the_cause(settings: dict[str, str], root: bool, remedy: str) -> None:
    trial = Trial(False, "Operation not permitted (EPERM)", 1)
    _, line = refusal(trial, lambda name: settings.get(name, ""), root=root)
    assert remedy in line


def test_the_apparmor_profile_is_for_the_file_that_runs_farcall(tmp_path: Path) -> None:
    real = tmp_path / "python 3 {x}"
    real.touch()
    link = tmp_path / "python"
    link.symlink_to(real)
    profile = apparmor_profile(str(link))
    escaped = str(real).replace(" ", "\\ ").replace("{", "\\{").replace("}", "\\}")
    assert f'profile farcall "{escaped}" flags=(unconfined) {{' in profile
    assert "\n  userns,\n" in profile


def test_the_line_that_installs_a_package_is_that_of_this_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall.doctor.packages._PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    tool = Package("mkfs.erofs", "images", {"apk": "erofs-utils", "dnf": ""}, "ask somebody")
    assert install_line(tool) == "ask somebody"
    (tmp_path / "apk").touch(mode=0o755)
    assert install_line(tool).endswith("apk add erofs-utils")
    (tmp_path / "dnf").touch(mode=0o755)
    assert install_line(tool) == "ask somebody"
