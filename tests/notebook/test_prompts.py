"""Other places where code is typed: prompts, `python -c`, standard input, scripts that a notebook runs."""

import subprocess
import sys

import pytest

from tests.conftest import Installation
from tests.notebook.conftest import Kernel

TYPED = """
import farcall
app = farcall.App()
factor = 3

class Thing:
    def __init__(self, x):
        self.x = x

@app.function()
def times(thing):
    return Thing(thing.x * factor)

running = app.run()
running.__enter__() and None
result = times.remote(Thing(5))
print("got", result.x, type(result) is Thing)
running.__exit__(None, None, None)
"""


@pytest.mark.parametrize(
    "command",
    [["-i"], ["-"], ["-c", TYPED], ["-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor"]],
    ids=["prompt", "standard input", "-c", "ipython"],
)
def test_what_is_typed_is_sent_by_value(server: Installation, command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *command],
        input=TYPED,
        env=server.environment | {"IPYTHONDIR": str(server.root / "ipython"), "TERM": "dumb"},
        cwd=server.root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "got 15 True" in done.stdout, done.stdout + done.stderr


def test_a_script_that_a_notebook_runs(kernel: Kernel, server: Installation) -> None:
    (server.root / "script_of_notebook.py").write_text(
        """
import farcall

app = farcall.App()

class Thing:
    pass

@app.function()
def same(thing):
    return type(thing) is Thing, __name__

if __name__ == "__main__":
    with app.run():
        print(same.remote(Thing()))
"""
    )
    for _ in range(2):
        ran = kernel("%run script_of_notebook.py")
        assert ran.stdout == "(True, 'script_of_notebook')\n", ran
    assert kernel("@app.function()\ndef f():\n    return 1\nwith app.run():\n    got = f.remote()\ngot").value == "1"


def test_a_module_beside_the_notebook(kernel: Kernel, server: Installation) -> None:
    (server.root / "beside_notebook.py").write_text("def help():\n    return 'helped'\n")
    kernel("import beside_notebook\n@app.function()\ndef use():\n    return beside_notebook.help()")
    ran = kernel(
        """
        try:
            with app.run():
                use.remote()
        except ModuleNotFoundError as error:
            print(error, error.__notes__)
        """
    )
    assert "No module named 'beside_notebook'" in ran.stdout
    assert 'add_local_python_source("beside_notebook")' in ran.stdout
    kernel("sent = farcall.App(image=farcall.Image.host().add_local_python_source('beside_notebook'))")
    kernel("@sent.function()\ndef use():\n    return beside_notebook.help()")
    assert kernel("with sent.run():\n    got = use.remote()\ngot").value == "'helped'"
