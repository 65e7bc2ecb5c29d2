"""Large objects that have arrived in part."""

import hashlib
import random
import threading
from pathlib import Path

from farcall.content import Lease, Store
from farcall.content.tiers.layout import BLOB_BYTES, Large, Piece
from farcall.content.tiers.partial import Partial


def test_who_has_a_piece_waits_for_no_other(store: Store, lease: Lease, tmp_path: Path, rng: random.Random) -> None:
    data = rng.randbytes(BLOB_BYTES + 1000)
    halves = data[:BLOB_BYTES], data[BLOB_BYTES:]
    pieces = b"".join(hashlib.sha256(half).digest() for half in halves)
    large = Large(hashlib.sha256(data).digest(), len(data), pieces)
    stop, asked, arrives = threading.Event(), threading.Event(), threading.Event()

    def come_late(piece: Piece) -> bytes:
        asked.set()
        arrives.wait()
        return halves[1]

    def fetch_second() -> None:
        with Partial(store, large, stop) as second:
            second.ensure(1, come_late)
            second.publish(lease, 0o644, 0)

    thread = threading.Thread(target=fetch_second)
    thread.start()
    try:
        asked.wait()
        with Partial(store, large, stop) as first:
            first.ensure(0, lambda piece: halves[0])
            assert first.read(0, 10) == data[:10]
            assert not first.publish(lease, 0o644, 0), "while the other piece is on its way"
    finally:
        arrives.set()
        thread.join()
    assert store.read(large.digest) == data
