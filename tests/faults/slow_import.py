"""An app whose import takes long enough to be hit by a kill."""

import time

import farcall

app = farcall.App("slow-import")

if not farcall.is_local():
    time.sleep(2.0)


@app.function(retries=farcall.Retries(max_retries=2, initial_delay=0.0))
def double(x: int) -> int:
    return 2 * x
