"""Functions that images are built with, as a build step runs them."""

import pickle
import subprocess
import sys
from pathlib import Path

import msgspec

from farcall.runner import call_once
from farcall.spec.function import FunctionSpec, MethodSpec, Source


def started(folder: Path, text: str, *args: object) -> subprocess.Popen[str]:
    """The function `f` of a module with this text, on its way with these arguments."""
    (folder / "steps.py").write_text(text)
    spec = FunctionSpec("fu-1", "f", Source("steps", "f", paths=(str(folder),)), (MethodSpec(""),))
    (folder / "function").write_bytes(msgspec.msgpack.encode(spec))
    (folder / "arguments").write_bytes(pickle.dumps((args, {})))
    command = [sys.executable, call_once.__file__, str(folder / "function"), str(folder / "arguments")]
    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_what_it_prints_is_there_at_once(tmp_path: Path) -> None:
    process = started(tmp_path, "def f(name):\n    print('downloading', name)\n    input()\n", "model")
    assert process.stdout is not None
    assert process.stdout.readline() == "downloading model\n"  # it waits for the line that comes now
    assert process.communicate("\n", timeout=60) == ("", "")
    assert process.returncode == 0


def test_what_it_raises_is_shown_without_our_frames(tmp_path: Path) -> None:
    process = started(tmp_path, "def f():\n    raise ValueError('no such model')\n")
    output, errors = process.communicate(timeout=60)
    assert (output, process.returncode) == ("", 1)
    assert errors == (
        f'Traceback (most recent call last):\n  File "{tmp_path}/steps.py", line 2, in f\n'
        "    raise ValueError('no such model')\nValueError: no such model\n"
    )
