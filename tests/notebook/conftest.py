"""Real kernels: each test's cells run in a Jupyter kernel of their own, whose containers one server makes."""

import queue
import secrets
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import Installation

if TYPE_CHECKING:
    from jupyter_client.blocking.client import BlockingKernelClient
    from jupyter_client.manager import KernelManager

# Without the extra `notebook`, which `make test` installs, there is nothing to test with.
collect_ignore_glob = [] if find_spec("ipykernel") and find_spec("nbclient") else ["test_*.py"]

CELL_SECONDS = 60.0


@dataclass
class Ran:
    """What a cell left behind."""

    streams: dict[str, str] = field(default_factory=lambda: {"stdout": "", "stderr": ""})
    value: str = ""
    error: str = ""
    message: str = ""

    @property
    def stdout(self) -> str:
        return self.streams["stdout"]

    @property
    def stderr(self) -> str:
        return self.streams["stderr"]


class Kernel:
    """A running kernel: `kernel(code)` runs a cell as a person would, and gives what appears under it."""

    def __init__(self, manager: "KernelManager", client: "BlockingKernelClient") -> None:
        self.manager = manager
        self.client = client

    def __call__(self, code: str) -> Ran:
        """Runs a cell that must not fail."""
        ran = self.finish(self.start(code))
        assert not ran.error, f"{ran.error}: {ran.message}\n{ran.stderr}"
        return ran

    def fails(self, code: str) -> Ran:
        """Runs a cell that must fail."""
        ran = self.finish(self.start(code))
        assert ran.error, f"the cell did not fail: {ran}"
        return ran

    def start(self, code: str) -> str:
        """Sends a cell and returns at once, with what `finish` wants."""
        return self.client.execute(textwrap.dedent(code), store_history=True, allow_stdin=False)

    def interrupt(self) -> None:
        """The stop button."""
        self.manager.interrupt_kernel()

    def finish(self, cell: str, until: Callable[[Ran], bool] = lambda ran: False, ran: Ran | None = None) -> Ran:
        """Reads what a cell prints until it has ended, or until something has been printed. Then call it again, with
        what it gave, for the rest."""
        ran = Ran() if ran is None else ran
        deadline = time.monotonic() + CELL_SECONDS
        while not until(ran):
            try:
                message = self.client.get_iopub_msg(timeout=max(deadline - time.monotonic(), 0.1))
            except queue.Empty:
                pytest.fail(f"the cell did not end within {CELL_SECONDS:.0f} s; so far it gave {ran}")
            if message["parent_header"].get("msg_id") != cell:
                continue
            if self._take(message, ran):
                return ran
        return ran

    @staticmethod
    def _take(message: dict[str, Any], ran: Ran) -> bool:
        content = message["content"]
        match message["msg_type"]:
            case "stream":
                ran.streams[content["name"]] += content["text"]
            case "execute_result":
                ran.value = content["data"]["text/plain"]
            case "error":
                ran.error, ran.message = content["ename"], content["evalue"]
            case "status":
                return content["execution_state"] == "idle"
            case _:
                pass
        return False


@pytest.fixture
def kernel(server: Installation) -> Iterator[Kernel]:
    """A kernel whose program is a client of `server`, with farcall and an empty app imported."""
    from jupyter_client.manager import KernelManager

    # Sockets in files: a free port that the manager finds could be another's before the kernel listens on it.
    manager = KernelManager(
        kernel_name="python3", transport="ipc", ip=str(server.root / f"kernel-{secrets.token_hex(4)}")
    )
    assert manager.kernel_spec is not None
    manager.kernel_spec.argv[:] = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager.start_kernel(
        env=server.environment | {"IPYTHONDIR": str(server.root / "ipython"), "JUPYTER_PLATFORM_DIRS": "1"},
        cwd=str(server.root),
    )
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=CELL_SECONDS)
        started = Kernel(manager, client)
        started("import farcall\napp = farcall.App('notebook')")
        yield started
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
