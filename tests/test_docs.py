"""What the documents say holds: links lead somewhere, and the README's programs run as printed."""

import ast
import re
import subprocess
from pathlib import Path
from typing import Protocol

import pytest

from bench import calls, elsewhere, images, scale
from farcall import errors
from farcall.settings.values import SETTINGS

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])


class Farcall(Protocol):
    root: Path

    def farcall(self, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]: ...


def readme_program(name: str) -> str:
    """The README's program whose app is called `name`."""
    blocks = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return next(block for block in blocks if f'farcall.App("{name}")' in block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_guide_is_in_the_readme() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    for guide in REPOSITORY.glob("docs/guide/*.md"):
        assert f"docs/guide/{guide.name}" in readme


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_programs_are_python(document: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL):
        # A guide may await outside a function, as a notebook may.
        compile(block, str(document), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_every_setting_is_documented() -> None:
    guide = (REPOSITORY / "docs/guide/settings.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| `(FARCALL_\w+)`", guide, re.MULTILINE) == [
        (setting.name, setting.variable) for setting in SETTINGS
    ]


def test_every_promise_names_the_row_that_measures_it() -> None:
    specification = (REPOSITORY / "docs/specification.md").read_text()
    promised = re.findall(r"^\|.*\| `([^`]+)` \|$", specification, re.MULTILINE)
    assert promised == [row.name for row in (*calls.ROWS, *images.ROWS, *scale.ROWS, *elsewhere.ROWS) if row.bars]


def test_every_error_a_user_can_meet_is_in_the_tree() -> None:
    tree = errors.__doc__ or ""
    for name, value in vars(errors).items():
        if isinstance(value, type) and value.__module__ == errors.__name__:
            assert re.search(rf"^ *{name}\b", tree, re.MULTILINE), f"{name} is not in the tree"


def test_the_first_program_runs_as_printed(server: Farcall, tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(readme_program("hello"))
    assert "Hello, Ada!" in server.farcall("run", "hello.py", "--name", "Ada", cwd=tmp_path).stdout


def test_a_thousand_files_as_printed(server: Farcall, tmp_path: Path) -> None:
    (tmp_path / "files.py").write_text(readme_program("files"))
    notes = tmp_path / "notes"
    for number in range(1000):
        (notes / f"{number // 100}").mkdir(parents=True, exist_ok=True)
        (notes / f"{number // 100}/{number}.md").write_text("word " * (number % 7))
    output = server.farcall("run", "files.py", "--folder", notes, "--pattern", "*.md", cwd=tmp_path).stdout
    counted = dict(reversed(line.split()) for line in output.splitlines() if line.strip().endswith(".md"))
    assert len(counted) == 1000
    assert counted[str(notes / "9/999.md")] == str(999 % 7)
