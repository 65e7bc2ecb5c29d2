"""The runner's start by exec: a file of the runner directory, run as a script by the user's interpreter."""

import os
import sys


def _start() -> None:
    folder = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(folder))
    # The script's own directory would offer this package's modules as top-level ones.
    if sys.path and os.path.abspath(sys.path[0]) == folder:
        del sys.path[0]
    sys.path.insert(0, root)
    from farcall.runner.main import main

    main()


if __name__ == "__main__":
    _start()
