"""pyright infers arguments and results of remote calls from the decorated code."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).with_name("typing_sample.py")
SOURCE = Path(__file__).resolve().parents[2] / "src"


def test_a_program_has_exactly_the_errors_it_is_meant_to_have(tmp_path: Path) -> None:
    if shutil.which("pyright") is None and not (Path(sys.executable).parent / "pyright").exists():
        pytest.fail("pyright is not installed; `pip install -e .[dev]` brings it")
    shutil.copy(SAMPLE, tmp_path)
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps(
            {
                "extraPaths": [str(SOURCE)],
                "pythonVersion": "3.11",
                "reportUnusedExpression": False,
                "reportUnusedCoroutine": False,
            }
        )
    )
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=110).stdout)
    lines = SAMPLE.read_text().splitlines()
    meant = {number for number, line in enumerate(lines, start=1) if "# wrong" in line}
    found = {
        problem["range"]["start"]["line"] + 1: problem["message"]
        for problem in report["generalDiagnostics"]
        if problem["severity"] == "error"
    }
    assert {number: message for number, message in found.items() if number not in meant} == {}
    assert {lines[number - 1] for number in meant - set(found)} == set()
