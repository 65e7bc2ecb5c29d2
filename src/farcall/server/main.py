"""The server process: from its start, to where it listens, to its end."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

from farcall import errors
from farcall.worker import process

IDLE_SECONDS = 300.0  # without apps and connections, after which the server ends; FARCALL_IDLE_SECONDS overrides


def main(announce: int) -> None:
    """Serves until told to stop. Writes "ready", or the error's code and text, to the descriptor `announce` and closes
    it."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        process.run(_serve(announce))
    except errors.FarcallError as error:
        _say(announce, f"{error.code} {error}")
        logging.getLogger("farcall.server").error("not serving: %s", error)
        sys.exit(3)


async def _serve(announce: int) -> None:
    from farcall import settings
    from farcall.server.server import Server
    from farcall.settings import flags
    from farcall.worker.gpus import found_or_simulated

    server = Server(
        settings.paths(),
        settings.load(folder=Path("/")),
        float(os.environ.get("FARCALL_IDLE_SECONDS", IDLE_SECONDS)),
        found_or_simulated(os.environ.get("FARCALL_SIMULATE_GPU")),
        testing=os.environ.get("FARCALL_TESTING") == "1",
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # a closed terminal is its clients' business

    def ready() -> None:
        # Each container costs six descriptors, and each large value on its way one. Only now: the launcher has started,
        # and containers get the limit that it inherited.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        with suppress(OSError):  # a full disk: the next server has only what is set
            flags.keep(settings.paths().state)
        logging.getLogger("farcall.server").info("serving, pid %d", os.getpid())
        _say(announce, "ready")

    await server.serve(ready)


def _say(announce: int, word: str) -> None:
    try:
        os.write(announce, word.encode())
        os.close(announce)
    except OSError:
        pass  # said before, or whoever started us is gone
