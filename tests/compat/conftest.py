"""Programs written for the reference API, and the command that runs each as it stands.

A program's comments say what is expected of it: `# runs:` the command, `# prints:` its stdout, and where there are any
`# deprecated:` the old names it uses, `# warns:` a warning, and `# only in containers:` what in it would be different
without containers.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Program:
    """A program and what it says of itself."""

    path: Path
    command: list[str]
    prints: str
    deprecated: list[str]
    warns: str
    only_in_containers: str

    @classmethod
    def read(cls, path: Path) -> "Program":
        text = path.read_text()
        prints = re.search(r"^# prints:\n((?:# .*\n)+)", text, re.MULTILINE)
        assert prints is not None, f"{path.name} does not say what it prints"
        return cls(
            path,
            shlex.split(_said(text, "runs"))[1:],
            re.sub(r"^# ", "", prints[1], flags=re.MULTILINE),
            _said(text, "deprecated").split(),
            _said(text, "warns"),
            _said(text, "only in containers"),
        )


def _said(text: str, what: str) -> str:
    found = re.search(rf"^# {what}: (.*)$", text, re.MULTILINE)
    return found[1] if found else ""


ALL = [Program.read(path) for path in sorted(PROGRAMS.glob("*.py"))]
