"""What steps are called in front of people."""

from __future__ import annotations

import shlex

from farcall.spec.image import Apt, Base, BuiltBase, Call, Copy, DebianBase, Download, Pip, RegistryBase, Run, UvSync

_LENGTH = 72


def of_base(base: Base) -> str:
    """Such as "FROM ubuntu:22.04"."""
    match base:
        case DebianBase():
            return "debian slim"
        case RegistryBase():
            return f"FROM {base.reference}"
        case BuiltBase():
            return f"FROM {base.image}"
        case _:
            return "FROM scratch"


def of_step(step: Run | Pip | UvSync | Apt | Copy | Download | Call) -> str:
    """Such as "apt-get install ffmpeg"; one line, shortened where it is long."""
    match step:
        case Run():
            command = step.command if isinstance(step.command, str) else shlex.join(step.command)
            return _short(f"RUN {' '.join(command.split())}")
        case Pip():
            packages = [*step.packages, *("requirements" for _ in step.requirements[:1])]
            return _short(f"{'uv ' if step.installer == 'uv' else ''}pip install {' '.join(packages)}")
        case UvSync():
            return _short(" ".join(["uv sync", *step.extras, *step.groups]))
        case Apt():
            return _short(f"apt-get install {' '.join(step.packages)}")
        case Copy():
            sources = [*step.sources, *(file.name for file in step.files)]
            return _short(f"COPY {' '.join(sources)} {step.target}")
        case Download():
            return _short(f"ADD {step.url} {step.target}")
        case Call():
            return _short(f"run_function {step.function.name}")


def _short(title: str) -> str:
    return title if len(title) <= _LENGTH else f"{title[: _LENGTH - 3]}..."
