"""What `gpu=` and `--simulate-gpu` say, and what products are asked for by."""

from typing import Any

import pytest

from farcall.errors import InvalidError
from farcall.spec.gpu import GpuRequest, format_simulated, parse, parse_simulated, type_of


@pytest.mark.parametrize(
    ("value", "requests"),
    [
        (None, ()),
        ("", ()),
        ([], ()),
        ("any", (GpuRequest("any"),)),
        ("Any:2", (GpuRequest("any", 2),)),
        ("h100:2", (GpuRequest("H100", 2),)),
        ("H100!", (GpuRequest("H100"),)),
        ("A100-80GB:4", (GpuRequest("A100-80GB", 4),)),
        (["H100:8", "A100-80GB", "any", "any"], (GpuRequest("H100", 8), GpuRequest("A100-80GB"), GpuRequest("any"))),
        (("T4",), (GpuRequest("T4"),)),
    ],
)
def test_what_can_be_asked_for(value: Any, requests: tuple[GpuRequest, ...]) -> None:
    assert parse("@app.function", value) == requests


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2, r'@app\.function: gpu=2 is neither a type such as "H100:2" nor a list of types'),
        ("H100:", "gpu='H100:' is no type such as"),
        ("H100:two", "gpu='H100:two' is no type"),
        ("H100:0", "gpu='H100:0' asks for 0 GPUs; a container has 1 to 64"),
        ("H100:65", "asks for 65 GPUs"),
        ("H100:-1", "is no type"),
        ("two words", "is no type"),
        (["T4", None], "gpu=None is no type"),
        ([["T4"]], r"gpu=\['T4'\] is no type"),
    ],
)
def test_what_cannot(value: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        parse("@app.function", value)


def test_a_type_without_its_variant_takes_all() -> None:
    assert GpuRequest("A100").accepts("A100-40GB")
    assert GpuRequest("any").accepts("T4")
    assert not GpuRequest("A100-80GB").accepts("A100-40GB")
    assert not GpuRequest("A10").accepts("A100-40GB")
    assert not GpuRequest("A100-40GB").accepts("A100")
    assert [str(GpuRequest("H100")), str(GpuRequest("H100", 2))] == ["H100", "H100:2"]


@pytest.mark.parametrize(
    ("product", "memory", "kind"),
    [
        ("Tesla T4", 15360, "T4"),
        ("NVIDIA L4", 23034, "L4"),
        ("NVIDIA L40S", 46068, "L40S"),
        ("NVIDIA A10G", 23028, "A10G"),
        ("NVIDIA A100-SXM4-80GB", 81920, "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", 81920, "A100-80GB"),
        ("A100-PCIE-40GB", 40536, "A100-40GB"),
        ("NVIDIA A100-PG509-200", 40536, "A100-PG509-200"),
        ("Tesla V100-SXM2-16GB", 16160, "V100-16GB"),
        ("NVIDIA H100 80GB HBM3", 81559, "H100"),
        ("NVIDIA H100 PCIe", 81559, "H100"),
        ("NVIDIA H200", 143771, "H200"),
        ("NVIDIA B200", 183359, "B200"),
        ("NVIDIA GeForce RTX 4090", 24564, "RTX-4090"),
        ("NVIDIA GeForce RTX 3090 Ti", 24564, "RTX-3090-TI"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887, "RTX-PRO-6000"),
        ("NVIDIA RTX 6000 Ada Generation", 49140, "RTX-6000-ADA"),
        ("NVIDIA", 1, "GPU"),
    ],
)
def test_what_a_product_is_asked_for_by(product: str, memory: int, kind: str) -> None:
    assert type_of(product, memory) == kind


def test_what_is_to_be_simulated() -> None:
    assert parse_simulated("T4=4, h100=8") == {"T4": 4, "H100": 8}
    assert format_simulated({"T4": 4, "H100": 8}) == "H100=8,T4=4"
    for wrong in ("T4", "T4=", "T4=four", "T4:4", ",", "T4=4,,L4=1"):
        with pytest.raises(InvalidError, match='is not of the form "T4=4,H100=8"'):
            parse_simulated(wrong)
    for wrong in ("T4=0", "T4=65", "T4=1,t4=2", "any=2"):
        with pytest.raises(InvalidError, match="a type stands there once, and there are 1 to 64 of it"):
            parse_simulated(wrong)
