"""Modules that run their app when they are imported."""

import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Installation

Run = Callable[..., subprocess.CompletedProcess[str]]

HEAD = """
import modal

app = modal.App("top-level")

@app.function(min_containers=2)
def square(x):
    return x * x

"""

WARNING = "the module runs its app when it is imported; in containers the import ends here"


@pytest.fixture
def run(server: Installation, tmp_path: Path) -> Run:
    """Runs a program that begins with HEAD by `farcall python` or another command."""

    def run(rest: str, *command: str) -> subprocess.CompletedProcess[str]:
        program = tmp_path / "program.py"
        program.write_text(HEAD + textwrap.dedent(rest))
        return server.farcall(*(command or ("python",)), program, cwd=tmp_path)

    return run


UNGUARDED = [
    "with app.run():\n    print(list(square.map(range(20))))\n",
    "with modal.enable_output(), app.run():\n    print(list(square.map(range(20))))\n",
    "with modal.enable_output():\n    with app.run():\n        print(list(square.map(range(20))))\n",
    "def main():\n    with app.run():\n        print(list(square.map(range(20))))\n\nmain()\n",
    "if True:\n    with app.run():\n        print(list(square.map(range(20))))\n",
    """
import asyncio

async def main():
    async with app.run():
        print([x async for x in square.map.aio(range(20))])

asyncio.run(main())
""",
]


@pytest.mark.parametrize("block", UNGUARDED)
def test_one_warning_shows_the_guarded_form(run: Run, block: str) -> None:
    ran = run(block)
    assert ran.stdout == f"{[x * x for x in range(20)]}\n", ran.stderr
    assert ran.stderr.count(WARNING) == 1
    assert '`if __name__ == "__main__":`' in ran.stderr
    assert "program.py:" in ran.stderr


@pytest.mark.parametrize(
    "guard", ['if __name__ == "__main__":', "if modal.is_local():", "if True:\n  if __name__ == '__main__':\n   if 1:"]
)
def test_no_warning_where_it_is_guarded(run: Run, guard: str) -> None:
    ran = run(f"{guard}\n    with app.run():\n        print(square.remote(3))\n")
    assert ran.stdout == "9\n", ran.stderr
    assert WARNING not in ran.stderr


def test_what_comes_after_the_block_runs_here_only(run: Run) -> None:
    ran = run(
        """
        with modal.enable_output(), app.run():
            print(square.remote(2))

        print("after", modal.is_local())
        """
    )
    assert ran.stdout == "4\nafter True\n", ran.stderr


def test_a_function_after_the_block_is_named(run: Run, server: Installation, tmp_path: Path) -> None:
    program = tmp_path / "late.py"
    program.write_text(
        HEAD
        + textwrap.dedent(
            """
            def main():
                with app.run():
                    print(late.remote())

            if modal.is_local():
                @app.function()
                def late():
                    return 1

            main()
            """
        )
    )
    ran = server.farcall("python", program, cwd=tmp_path, check=False)
    assert ran.returncode == 1
    assert "late" in ran.stderr
    assert "define it at the top level of the module" in ran.stderr


def test_with_farcall_run_the_block_is_the_run(run: Run) -> None:
    ran = run("with app.run():\n    print(square.remote(5))\n", "run")
    assert ran.stdout == "25\n"
    assert ran.stderr.count(WARNING) == 1
