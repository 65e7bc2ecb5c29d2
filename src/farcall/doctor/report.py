"""All findings together, as a table or as JSON."""

import json
import os
import platform
import shutil
import textwrap
from contextlib import suppress
from itertools import groupby
from typing import TextIO

from farcall.doctor import cgroups, filesystems, gpus, interpreters, namespaces, packages, security, workers
from farcall.doctor.finding import Finding

_COLOURS = {"ok": "32", "limited": "33", "missing": "31"}
_WIDTH = 110


def probe() -> list[Finding]:
    """Everything, in the order of the table. Takes well under 2 s, changes nothing and needs no root."""
    findings: list[Finding] = []
    for part in (namespaces, cgroups, packages, filesystems, security, interpreters, gpus, workers):
        findings += part.probe()
    return findings


def run(stream: TextIO, json: bool = False) -> int:
    """Writes the report; returns the exit code: 0 when containers can be made here, 3 when not."""
    findings = probe()
    width = min(_WIDTH, shutil.get_terminal_size().columns) if stream.isatty() else _WIDTH
    stream.write(_as_json(findings) if json else _as_table(findings, _coloured(stream), width))
    return 3 if _lacking(findings) else 0


def _lacking(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.required and finding.status == "missing"]


def _system() -> str:
    name = "Linux"
    with suppress(OSError):
        name = platform.freedesktop_os_release().get("PRETTY_NAME", name)
    user = "root" if os.geteuid() == 0 else f"uid {os.geteuid()}"
    return f"{name}, Linux {platform.release()}, {platform.machine()}, {user}"


def _as_json(findings: list[Finding]) -> str:
    said = {
        "system": _system(),
        "containers": not _lacking(findings),
        "findings": [finding._asdict() for finding in findings],
    }
    return json.dumps(said, indent=2) + "\n"


def _coloured(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _as_table(findings: list[Finding], coloured: bool, width: int) -> str:
    lines = [_system()]
    wide = max(len(finding.name) for finding in findings)
    for group, members in groupby(findings, key=lambda finding: finding.group):
        lines += ["", group]
        for finding in members:
            status = f"{finding.status:<7}"
            if coloured:
                status = f"\x1b[{_COLOURS[finding.status]}m{status}\x1b[0m"
            head = f"  {status}  {finding.name:<{wide}}  "
            margin = " " * (2 + 7 + 2 + wide + 2)
            text = finding.purpose + (f" [{finding.detail}]" if finding.detail else "")
            wrapped = textwrap.wrap(text, max(width - len(margin), 40), break_long_words=False, break_on_hyphens=False)
            lines += [head + wrapped[0], *(margin + line for line in wrapped[1:])]
            if finding.remedy:
                lines.append(f"{margin}-> {finding.remedy}")  # never wrapped: it is there to be copied
    lacking = _lacking(findings)
    lines.append("")
    if lacking:
        lines.append(
            f"No containers here: {lacking[0].name} missing. `farcall run --runtime process` runs without isolation."
        )
    else:
        lines.append("Containers can be made here.")
    return "\n".join(lines) + "\n"
