"""Testing apps: `with farcall.testing.run(app) as run:`.

Without a server an app runs in this process, on any system, without root: every call goes through the same
serialization as a container's, and retries, timeouts, cold starts and scaledown windows happen on `run.clock`, which
moves when the test says so. With a `Server`, the same test runs in containers of this machine.

pytest gets the fixture `farcall_run` from here, and the option `--farcall-containers`.
"""

from farcall.testing.clock import Clock
from farcall.testing.run import Run, run
from farcall.testing.server import Server
from farcall.testing.simulation import Call

__all__ = ["Call", "Clock", "Run", "Server", "run"]
