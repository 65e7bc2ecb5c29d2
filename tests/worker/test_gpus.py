"""GPUs of a machine that has none: a driver's NVML that is compiled here, and device nodes of another kind."""

import os
import subprocess
from pathlib import Path

import pytest

from farcall.spec.container import Bind
from farcall.worker import gpus
from farcall.worker.gpus import Gpu, Gpus

SOURCE = Path(__file__).parent / "fake_nvml.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("driver") / "libnvidia-ml.so.550.54.15"
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", path, SOURCE], check=True)
    return path


@pytest.fixture
def machine(tmp_path: Path, library: Path) -> Path:
    """The root of a machine with this driver."""
    folder = tmp_path / f"usr/lib/{os.uname().machine}-linux-gnu"
    folder.mkdir(parents=True)
    (folder / "libnvidia-ml.so.1").symlink_to(library)
    for name in ("libcuda.so.550.54.15", "libnvidia-ptxjitcompiler.so.1", "libc.so.6", "libcudart.so.12"):
        (folder / name).write_bytes(b"")
    (folder / "libcuda.so.1").symlink_to("libcuda.so.550.54.15")
    (folder / "libnvidia-gone.so.1").symlink_to("nowhere")
    (tmp_path / "dev").mkdir()
    for name in ("nvidiactl", "nvidia0", "nvidia1", "nvidia-uvm"):
        (tmp_path / "dev" / name).write_bytes(b"")
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "usr/bin/nvidia-smi").write_bytes(b"")
    return tmp_path


def test_a_machine_without_a_driver_has_none(tmp_path: Path) -> None:
    assert gpus.discover(tmp_path) == Gpus()


def test_what_the_driver_knows(machine: Path) -> None:
    found = gpus.discover(machine)
    assert found.gpus == (
        Gpu(0, "A100-80GB", 81920, "GPU-aaaa", f"{machine}/dev/nvidia1"),
        Gpu(1, "T4", 15360, "GPU-bbbb", f"{machine}/dev/nvidia0"),
    )
    assert (found.driver, found.problem, found.is_simulated) == ("550.54.15", "", False)
    assert found.counts() == {"A100-80GB": 1, "T4": 1}


def test_what_a_container_sees_of_the_host(machine: Path) -> None:
    found = gpus.discover(machine)
    nodes = found.binds_for([1], image=False)
    names = ("nvidiactl", "nvidia-uvm", "nvidia0")
    assert nodes == tuple(Bind(f"{machine}/dev/{name}", f"/dev/{name}", read_only=False) for name in names)
    image = found.binds_for([1], image=True)
    assert image[:3] == nodes
    assert [(bind.target, bind.read_only) for bind in image[3:]] == [
        (f"/run/nvidia/lib/{name}", True)
        for name in ("libcuda.so.1", "libcuda.so.550.54.15", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1")
    ] + [("/run/nvidia/bin/nvidia-smi", True)]
    assert found.binds_for([], image=True) == ()


def test_what_its_environment_says(machine: Path) -> None:
    found = gpus.discover(machine)
    assert found.environment_for([], {}, image=True) == {}
    assert found.environment_for([1, 0], {}, image=False) == {"CUDA_VISIBLE_DEVICES": "GPU-bbbb,GPU-aaaa"}
    assert found.environment_for([0], {"LD_LIBRARY_PATH": "/opt/lib"}, image=True) == {
        "CUDA_VISIBLE_DEVICES": "GPU-aaaa",
        "LD_LIBRARY_PATH": "/run/nvidia/lib:/opt/lib",
    }


def test_a_driver_that_does_not_work_says_why(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "dev/nvidia1").unlink()
    assert gpus.discover(machine).problem.endswith("dev/nvidia1 is missing, the node of NVIDIA A100-SXM4-80GB GPU-aaaa")
    monkeypatch.setenv("FAKE_NVML_FAILS", "1")
    assert gpus.discover(machine) == Gpus(problem="nvmlInit_v2: Driver/library version mismatch (18)")
    (machine / f"usr/lib/{os.uname().machine}-linux-gnu/libnvidia-ml.so.1").unlink()
    assert "libnvidia-ml.so.1: cannot open shared object file" in gpus.discover(machine).problem


def test_simulated_ones_have_numbers_and_no_devices() -> None:
    made = gpus.simulated({"T4": 2, "H100": 1})
    assert [gpu.type for gpu in made.gpus] == ["T4", "T4", "H100"]
    assert made.is_simulated
    assert made.binds_for([0, 1], image=True) == ()
    assert made.environment_for([0, 1], {}, image=True) == {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "FARCALL_SIMULATED_GPU": "T4:2",
    }
