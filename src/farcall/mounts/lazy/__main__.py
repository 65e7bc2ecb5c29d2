"""`python -m farcall.mounts.lazy STORE DEVICE OPENINGS ORDERS`: the process that serves one store's missing objects.

The last three are descriptors: an opening of /dev/fuse that is or will be mounted, a memory file that outlives this
process, and a pipe. Each line in the pipe is the id of a tree from which a container is about to start; at its end this
process ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from farcall.content import profiles
from farcall.content.room import Room
from farcall.content.store import Store
from farcall.mounts.lazy import fuse
from farcall.mounts.lazy.arrivals import Arrivals
from farcall.mounts.lazy.openings import Openings
from farcall.mounts.lazy.outages import Outages
from farcall.mounts.lazy.recording import Recordings
from farcall.mounts.lazy.remembering import Remembering
from farcall.mounts.lazy.server import Server
from farcall.mounts.lazy.sources import Places, open_fetcher

_HOUSEKEEPING = 0.25  # seconds
_GIVE_WAY = 0.0005  # seconds that a thread may go on while another wants the interpreter: who answers the kernel does


def main(arguments: list[str]) -> int:
    root, device, openings, orders = arguments
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal's signals are for the worker
    sys.setswitchinterval(_GIVE_WAY)
    asyncio.run(_serve(Remembering(Path(root)), int(device), int(openings), int(orders)))
    os._exit(0)  # threads may wait for what does not come


async def _serve(store: Store, device: int, openings: int, orders: int) -> None:
    recordings = Recordings(store)
    tiers = Places(store)
    arrivals = Arrivals(
        store, open_fetcher(store, tiers), profiles.Exchange(store, tiers), Room(store, "this machine"), Outages(_log)
    )
    server = Server(fuse.Device(device), store, arrivals, Openings(openings), recordings)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(orders, "rb"))
    serving = asyncio.create_task(server.serve())
    listening = asyncio.create_task(_listen(reader, server))
    keeping = asyncio.create_task(_keep_house(recordings, arrivals))
    done, _ = await asyncio.wait({serving, listening, keeping}, return_when=asyncio.FIRST_COMPLETED)
    recordings.write(all_of_them=True)
    for task in done:
        task.result()


async def _listen(reader: asyncio.StreamReader, server: Server) -> None:
    while line := await reader.readline():
        server.begin_start(line.decode().strip())


async def _keep_house(recordings: Recordings, arrivals: Arrivals) -> None:
    while True:
        await asyncio.sleep(_HOUSEKEEPING)
        arrivals.keep_house()
        arrivals.send_profiles(recordings.write())


def _log(line: str) -> None:
    print(f"farcall: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
