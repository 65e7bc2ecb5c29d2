"""The guide's cells, executed as the notebook they are."""

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import Installation

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "notebooks.md"


@pytest.fixture
def executed(server_environment: Installation) -> Any:
    """A notebook of the guide's cells, after each of them has run."""
    codes = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    cells = [nbformat.v4.new_code_cell(code) for code in codes]
    notebook = nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    client = NotebookClient(
        notebook, timeout=60, resources={"metadata": {"path": str(server_environment.root)}}, kernel_name="python3"
    )
    client.create_kernel_manager()
    client.km.transport, client.km.ip = "ipc", str(server_environment.root / "guide")
    client.km.kernel_spec.argv[:] = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    client.execute()
    return notebook


def printed(cell: Any, name: str = "stdout") -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == name)


def test_the_guide_is_a_notebook(executed: Any) -> None:
    first, measured, awaited, begun, mapped, ended = executed.cells
    assert first.outputs == begun.outputs == ended.outputs == []
    # Logs come on a connection of their own: they are all there, but in no fixed place among the cell's own prints.
    assert "measuring 3 4\n" in printed(measured)
    assert "50.0" in printed(measured)
    assert "    measuring 3 4\n    50.0\n" in GUIDE.read_text()
    assert "[50.0, 100.0]" in printed(awaited)
    assert "[50.0, 130.0]" in printed(mapped)
    assert "".join(map(printed, executed.cells)).count("measuring") == 5
    assert not any(printed(cell, "stderr") for cell in executed.cells)
