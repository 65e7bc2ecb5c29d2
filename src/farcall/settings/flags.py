"""What a server was started with on its command line. The one that takes its place, after an edit, an update or a
crash, has it too; one that has ended in good order leaves nothing."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

VARIABLE = "FARCALL_SERVER_FLAGS"  # the names of the variables that flags have set, where a command starts the server
_NAME = "server-flags.json"


def keep(state: Path) -> None:
    """In a server that begins: writes down what it was given, by the names of the variables. Raises OSError."""
    given = {name: os.environ[name] for name in os.environ.get(VARIABLE, "").split(",") if name in os.environ}
    made = state / f"{_NAME}.{os.getpid()}"
    made.write_text(json.dumps({"pid": os.getpid(), "given": given}))
    made.rename(state / _NAME)


def forget(state: Path) -> None:
    """In that server, as it ends in good order."""
    if _read(state).get("pid") == os.getpid():
        with suppress(OSError):
            (state / _NAME).unlink()


def given(state: Path) -> dict[str, str]:
    """What the server that runs, or has crashed, was given."""
    found: Any = _read(state).get("given")
    return cast("dict[str, str]", found) if isinstance(found, dict) else {}


def passed_on(state: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for a server that takes the place of one in `state`: none where a command says itself what it is to
    be given."""
    found: dict[str, str] = {} if VARIABLE in environment else given(state)
    return found | {VARIABLE: ",".join(found)} if found else {}


def _read(state: Path) -> dict[str, Any]:
    try:
        found: Any = json.loads((state / _NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
