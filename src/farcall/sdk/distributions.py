"""What is installed for this interpreter, as something that can be installed elsewhere."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

from farcall.errors import InvalidError

# What an image has anyway: farcall comes with the container, pip with Python.
LEFT_OUT = frozenset({"farcall", "pip"})
PYTORCH_INDEX = "https://download.pytorch.org/whl/{label}"
_PYTORCH_LABEL = re.compile(r"cpu|cu\d+|rocm\d+(\.\d+)*|xpu")
_NO_MODULES = frozenset({"setup.py", "conftest.py", "noxfile.py", "tests", "test", "docs", "examples"})


class Installed(NamedTuple):
    """`packages` are requirements with their exact version, by the index that they need besides the usual one, which is
    "" for most. `editable` are the modules of packages installed in editable mode."""

    packages: dict[str, tuple[str, ...]]
    editable: tuple[str, ...]


def installed(path: list[str] | None = None) -> Installed:
    """What is installed on `path`, default `sys.path`.

    Raises InvalidError that names all that is on no index: what was installed from a repository, a file or a folder.
    """
    packages: dict[str, list[str]] = {"": []}
    editable: list[str] = []
    refused: list[str] = []
    for name, distribution in _by_name(sys.path if path is None else path):
        origin = _origin(distribution)
        url = str(origin.get("url", ""))
        if origin.get("dir_info", {}).get("editable"):
            modules = list(_editable_modules(distribution, url))
            editable += modules
            if not modules:
                refused.append(f"{name} (editable, from {url}, of which no module was found)")
        elif "vcs_info" in origin:
            refused.append(f"{name} (from the repository {url})")
        elif url.startswith("file:"):
            refused.append(f"{name} (from {unquote(urlparse(url).path)})")
        elif url:
            packages[""].append(f"{name} @ {url}")
        else:
            public, _, label = distribution.version.partition("+")
            if not label:
                packages[""].append(f"{name}=={public}")
            elif _PYTORCH_LABEL.fullmatch(label):
                packages.setdefault(PYTORCH_INDEX.format(label=label), []).append(f"{name}=={public}+{label}")
            else:
                refused.append(f"{name} (version {distribution.version}, which no index has)")
    if refused:
        raise InvalidError(
            f"some packages of {sys.executable} cannot be installed in an image: {', '.join(refused)}. Install them "
            "from an index, in editable mode, or describe the image with farcall.Image.debian_slim()"
        )
    return Installed(
        {index: tuple(found) for index, found in packages.items() if found}, tuple(dict.fromkeys(editable))
    )


def _by_name(path: list[str]) -> Iterator[tuple[str, Distribution]]:
    """The distributions that imports find, sorted by their normalized names."""
    found: dict[str, Distribution] = {}
    for distribution in distributions(path=path):
        name = distribution.metadata["Name"]
        if name:  # a folder that an uninstall has left behind has none
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution)
    for name in sorted(found):
        if name not in LEFT_OUT:
            yield name, found[name]


def _origin(distribution: Distribution) -> dict[str, Any]:
    """Where it was installed from, if not from an index (direct_url.json, PEP 610)."""
    text = distribution.read_text("direct_url.json")
    try:
        return {} if text is None else json.loads(text)
    except ValueError:
        return {}


def _editable_modules(distribution: Distribution, url: str) -> Iterator[str]:
    """Top-level modules of an editable install: those its path files lead to, or its import finder maps."""
    top_level = (distribution.read_text("top_level.txt") or "").split()
    if top_level:
        yield from top_level
        return
    for file in distribution.files or ():
        located = Path(str(distribution.locate_file(file)))
        if located.suffix == ".pth":
            for line in located.read_text(encoding="utf-8").splitlines():
                if os.path.isdir(line.strip()):
                    yield from _modules_in(Path(line.strip()))
        elif located.suffix == ".py" and located.name.startswith("__editable__"):
            import ast

            for node in ast.walk(ast.parse(located.read_text(encoding="utf-8"))):
                if isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(node.value, ast.Dict):
                    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
                    if any(isinstance(target, ast.Name) and target.id == "MAPPING" for target in targets):
                        yield from ast.literal_eval(node.value)


def _modules_in(folder: Path) -> Iterator[str]:
    for entry in sorted(folder.iterdir()):
        if entry.name in _NO_MODULES:
            continue
        if entry.suffix == ".py" or (entry / "__init__.py").exists():
            yield entry.stem
