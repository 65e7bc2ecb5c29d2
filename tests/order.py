"""Which test files the processes of `make test` begin with: those that take longest, so that all end at about one time.

Each process takes the next file that nobody has taken (pytest-xdist's `loadfile`). Files that need the same Debian are
taken as one: whoever makes it has it for all of them.
"""

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

DEBIAN = ("tests/conformance/test_images.py", "tests/conformance/test_building.py")
# All others take less than half a minute.
LONGEST = (
    *DEBIAN,
    "tests/hosts/test_matrix.py",
    "tests/packaging/test_install.py",
    "tests/faults/test_kills.py",
    "tests/link/test_ssh.py",
    "tests/notebook/test_notebook.py",
    "tests/faults/test_soak.py",
    "tests/cluster/test_workers.py",
    "tests/conformance/test_bad_input.py",
    "tests/cli/test_inspection.py",
    "tests/faults/test_server.py",
    "tests/cli/test_run.py",
    "tests/conformance/test_map.py",
    "tests/launcher/test_lazy.py",
    "tests/interpreters/test_private.py",
    "tests/conformance/test_calls.py",
    "tests/conformance/test_retries.py",
    "tests/conformance/test_gpu.py",
    "tests/builder/test_elsewhere.py",
    "tests/cluster/test_joining.py",
    "tests/link/test_attaching.py",
    "tests/conformance/test_concurrency.py",
)


class LongestFirst(LoadFileScheduling):
    """The order in which files are taken."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False  # by how many tests there are in them
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return DEBIAN[0] if file in DEBIAN else file


def place(nodeid: str) -> int:
    """Where among all a test's file comes."""
    file = nodeid.partition("::")[0]
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)
