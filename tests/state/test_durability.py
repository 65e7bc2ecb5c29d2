"""kill -9 at random points: whatever was acknowledged is there afterwards, whole."""

import asyncio
import hashlib
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from farcall.state import StateStore

# Prints "call ID SHA", "output ID SHA" and "cancel ID" once each is acknowledged.
SPAWN_FOREVER = """
import asyncio, hashlib, random, sys
from pathlib import Path
from farcall.state import App, Call, StateStore

async def chain(store, random, name):
    for number in range(10**9):
        call_id = f"fc-{name}-{number}"
        payload = random.randbytes(random.choice([10, 10, 10, 5000, 200_000, 1_100_000]))
        await store.add_call(Call(call_id=call_id, app_id="ap-1", function_id="fu-1", function_name="f"), [payload])
        print("call", call_id, hashlib.sha256(payload).hexdigest(), flush=True)
        if number % 3 == 1:
            await store.record_output(call_id, 0, 0, payload[::-1])
            print("output", call_id, hashlib.sha256(payload[::-1]).hexdigest(), flush=True)
        elif number % 3 == 2:
            await store.cancel_call(call_id)
            print("cancel", call_id, "-", flush=True)

async def main():
    seed = int(sys.argv[2])
    store = StateStore(Path(sys.argv[1]))
    if not await store.apps():
        await store.add_app(App(app_id="ap-1", name="x"))
    await asyncio.gather(*(chain(store, random.Random(f"{seed} {n}"), f"{seed}-{n}") for n in range(8)))

asyncio.run(main())
"""


def test_every_acknowledged_row_survives_kill_9(tmp_path: Path, rng: random.Random) -> None:
    directory = tmp_path / "state"
    acknowledged: dict[tuple[str, str], str] = {}
    for round_ in range(8):
        command = [sys.executable, "-c", SPAWN_FOREVER, str(directory), str(round_)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(rng.randrange(1, 150))]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines(keepends=True)
        process.stdout.close()
        process.wait()
        for line in lines:
            if line.endswith("\n"):  # the last one may have been cut
                what, call_id, digest = line.split()
                acknowledged[what, call_id] = digest
        asyncio.run(check(directory, acknowledged))
    with sqlite3.connect(directory / "state.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def check(directory: Path, acknowledged: dict[tuple[str, str], str]) -> None:
    store = StateStore(directory)
    files = len(list((directory / "payloads").iterdir()))
    named = 0
    pending = {call.call_id async for call in store.pending_calls()}
    for (what, call_id), digest in acknowledged.items():
        status = (await store.call(call_id)).status
        if what == "call" and status == "pending":
            assert call_id in pending
            assert hashlib.sha256(await store.input_payload(call_id, 0)).hexdigest() == digest
        elif what == "output":
            found = await store.output(call_id, 0)
            assert found is not None
            assert hashlib.sha256(found.payload).hexdigest() == digest
            assert status == "done"
        elif what == "cancel":
            assert status == "cancelled"
    with sqlite3.connect(directory / "state.db") as connection:
        for table in ("inputs", "outputs"):
            named += connection.execute(f"SELECT count(file) FROM {table}").fetchone()[0]
    assert files == named  # no file without a row is left after the sweep
    await store.close()
