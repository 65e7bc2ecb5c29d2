"""What people are told of the Debian that a build makes itself."""

import pytest

from farcall.builder import debian
from farcall.builder.progress import PROGRESS

SAID = b"""\
I: running apt-get update...
W: no keyring
Get:1 http://deb.example/debian bookworm InRelease [151 kB]
I: installing essential packages...
Err:2 http://deb.example/debian bookworm/main amd64 Packages
E: apt-get failed
I: done
"""


def test_what_mmdebstrap_does_is_progress_and_what_is_wrong_stays() -> None:
    told: list[str] = []
    reading = debian._Told(iter(SAID.splitlines(keepends=True)), told.append)  # type: ignore[arg-type]
    reading.start()
    reading.join()
    assert told == [
        f"{PROGRESS}running apt-get update",
        "W: no keyring",
        f"{PROGRESS}installing essential packages",
        "Err:2 http://deb.example/debian bookworm/main amd64 Packages",
        "E: apt-get failed",
        f"{PROGRESS}done",
    ]
    assert reading.why() == "E: apt-get failed"


@pytest.mark.parametrize("line", ["", "Reading package lists...", "I:"])
def test_what_tells_nobody_anything(line: str) -> None:
    assert debian._told(line) == ""
