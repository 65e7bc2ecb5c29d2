"""Semantics: `gpu=`, on a machine that is said to have GPUs: containers get numbers, and no devices."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Installation

PROGRAM = """
    import os, time
    import farcall
    from farcall import errors

    app = farcall.App("gpus")

    def mine():
        return os.environ.get("FARCALL_SIMULATED_GPU", ""), os.environ.get("CUDA_VISIBLE_DEVICES", "")

    @app.cls(max_containers=1)
    class Meeting:
        @farcall.enter()
        def begin(self):
            self.here = 0

        @farcall.method()
        def arrive(self):
            self.here += 1

        @farcall.method()
        def count(self):
            return self.here

    @app.function(gpu="T4", max_containers=4)
    def one(others):
        Meeting().arrive.remote()
        while Meeting().count.remote() < others:
            time.sleep(0.01)
        return mine()

    @app.function(gpu=["H100", "L4:3", "T4:2"])
    def preferred():
        return mine()

    @app.function(gpu="any")
    def any_of_them():
        return mine()

    @app.function()
    def none():
        return mine()

    @app.function(gpu="H100:2")
    def never():
        return mine()

    @app.function(gpu="T4:3")
    def many():
        return mine()

    @app.cls(gpu="L4")
    class Model:
        @farcall.method()
        def where(self):
            return mine()

    @app.local_entrypoint()
    def main():
        found = list(one.map([3] * 3, order_outputs=False))
        print("one", sorted(found))
        print("preferred", preferred.remote())
        print("any", any_of_them.remote()[0])
        print("none", none.remote())
        print("class", Model().where.remote())
        print("variant", none.with_options(gpu="L4:2").remote())
        for function in (never, many.with_options(gpu="T4:4")):
            began = time.monotonic()
            try:
                function.remote()
            except errors.ResourceExhaustedError as error:
                assert time.monotonic() - began < 20
                print(error)
"""

WAITS = """
    import time
    import farcall

    app = farcall.App("waits")

    @app.function(gpu="T4:2", max_containers=1)
    def first():
        time.sleep(4)

    @app.function(gpu="T4:2")
    def second():
        return "second"

    @app.local_entrypoint()
    def main():
        call = first.spawn()
        while not first.get_current_stats().num_running_inputs:
            time.sleep(0.02)
        print(second.remote())
        call.get()
"""


@pytest.fixture(scope="module", autouse=True)
def connected() -> Iterator[None]:
    """These tests have servers of their own."""
    yield


def test_each_container_has_gpus_of_its_own_as_they_were_asked_for(
    installation: "Installation", program: Callable[[str], Path]
) -> None:
    """A type, a count, any, a list in order of preference; idle containers make room; what is not there is named."""
    done = installation.farcall("run", "--simulate-gpu", "T4=3,L4=2", program(PROGRAM))
    lines = done.stdout.splitlines()
    assert lines[:6] == [
        "one [('T4:1', '0'), ('T4:1', '1'), ('T4:1', '2')]",
        lines[1],
        lines[2],
        "none ('', '')",
        lines[4],
        lines[5],
    ], done.stdout + done.stderr
    assert lines[1] in ("preferred ('T4:2', '0,1')", "preferred ('T4:2', '1,2')", "preferred ('T4:2', '0,2')")
    assert lines[2] in ("any L4:1", "any T4:1")
    assert lines[4] in ("class ('L4:1', '3')", "class ('L4:1', '4')")
    assert lines[5] == "variant ('L4:2', '3,4')"
    assert lines[6:] == [
        "never asks for gpu=H100:2 and this machine has L4 (2), T4 (3): change gpu=",
        "many asks for gpu=T4:4 and this machine has L4 (2), T4 (3): change gpu=",
    ]
    assert "its GPUs are simulated (--simulate-gpu)" in done.stderr

    # The GPUs are the server's: it is replaced when it is idle, and says what it has.
    status = installation.farcall("server", "status")
    assert "GPUs: L4 (2), T4 (3), simulated" in status.stdout
    installation.farcall("server", "start", "--simulate-gpu", "T4=2")
    assert "GPUs: T4 (2), simulated" in installation.farcall("server", "status").stdout

    # One that has to wait says for what, in its own line.
    waited = installation.farcall("run", program(WAITS))
    assert waited.stdout == "second\n"
    assert "waiting for room on this machine: it needs gpu=T4:2 and free are T4 (0); waits has 2" in waited.stderr


def test_where_there_is_none_a_call_says_so(session_server: "Installation", program: Callable[[str], Path]) -> None:
    done = session_server.farcall("run", program(WAITS), check=False)
    assert done.returncode == 3
    assert re.search(
        "farcall: first asks for gpu=T4:2 and (this machine has no|no worker has a) GPU: change gpu=", done.stderr
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [("T4:4", 'is not of the form "T4=4,H100=8"'), ("any=4", "a type stands there once, and there are 1 to 64 of it")],
)
def test_gpus_that_cannot_be_simulated(
    installation: "Installation", program: Callable[[str], Any], value: str, message: str
) -> None:
    done = installation.farcall("run", "--simulate-gpu", value, program(WAITS), check=False)
    assert done.returncode != 0
    assert message in done.stderr
    done = installation.farcall("server", "start", "--simulate-gpu", value, check=False)
    assert done.returncode != 0
    assert f"simulate_gpu='{value}'" in done.stderr
