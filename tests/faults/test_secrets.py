"""Secrets of detached apps: a server that was killed finds them again, unless their key is gone."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.conftest import Installation
from tests.faults.test_server import server_pid

PROGRAM = """
import os, time
import farcall

app = farcall.App("kept", secrets=[farcall.Secret.from_dict({"BROUGHT": "brought-value"})])

@app.function(secrets=[farcall.Secret.from_name("stored")])
def reveal():
    if os.environ["STORED"] == "first-value":
        time.sleep(250)
    return os.environ["STORED"] + " " + os.environ["BROUGHT"]

if __name__ == "__main__":
    with app.run(detach=True):
        call = reveal.spawn()
        while not reveal.get_current_stats().num_running_inputs:
            time.sleep(0.02)
        print(call.object_id)
"""


def test_a_killed_server_finds_secrets_again_but_not_without_their_key(installation: Installation) -> None:
    def run(*words: str | Path) -> str:
        ended = subprocess.run(
            [sys.executable, *words], env=installation.environment, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def restart() -> None:
        os.kill(server_pid(installation), signal.SIGKILL)
        installation.farcall("server", "start")

    installation.farcall("secret", "create", "stored", "STORED=first-value")
    program = installation.root / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    call_id = run(program)
    installation.farcall("secret", "update", "stored", "STORED=stored-value")  # for the containers that come
    state = installation.root / "state"
    key = (state / "secrets.key").rename(state / "elsewhere")
    restart()
    log = installation.farcall("server", "logs").stdout
    assert "app kept (ap-" in log
    assert "is not taken up" in log
    assert "secrets.key is gone. Put it back" in log
    # The server is not hindered by it, and lists what there is.
    assert '"keys": [\n      "STORED"\n' in installation.farcall("secret", "list", "--json").stdout

    key.rename(state / "secrets.key")
    restart()
    code = f"import farcall; print(farcall.FunctionCall.from_id({call_id!r}).get(timeout=30))"
    assert run("-c", code) == "stored-value brought-value"
