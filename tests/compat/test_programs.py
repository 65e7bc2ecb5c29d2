"""Programs written for the reference API run unmodified."""

import pytest

from tests.compat.conftest import ALL, PROGRAMS, Program
from tests.conftest import Installation


@pytest.mark.parametrize("program", ALL, ids=lambda program: program.path.stem)
def test_runs_unmodified(server: Installation, program: Program) -> None:
    ran = server.farcall(*program.command, cwd=PROGRAMS)
    assert ran.stdout == program.prints, ran.stderr
    first = ran.stderr.splitlines()[0]
    assert "`import modal` gives farcall" in first
    for name in program.deprecated:
        lines = [line for line in ran.stderr.splitlines() if f"{name} is now" in line]
        assert len(lines) == 1, ran.stderr
    if not program.deprecated:
        assert " is now " not in ran.stderr
    assert ran.stderr.count(program.warns) == 1 or not program.warns, ran.stderr


@pytest.mark.parametrize(
    "program", [each for each in ALL if not each.only_in_containers], ids=lambda program: program.path.stem
)
def test_runs_locally(server: Installation, program: Program) -> None:
    ran = server.farcall(program.command[0], "--local", *program.command[1:], cwd=PROGRAMS)
    assert ran.stdout == program.prints, ran.stderr


def test_a_plain_import_finds_no_modal(server: Installation) -> None:
    ran = server.farcall("run", "--no-compat", "word_count.py", cwd=PROGRAMS, check=False)
    assert ran.returncode == 1
    assert "gives farcall" not in ran.stderr
    assert "ModuleNotFoundError" in ran.stderr
