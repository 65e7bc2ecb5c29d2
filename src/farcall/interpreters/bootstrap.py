"""The farcall CLI under an interpreter that does not have farcall: a runner directory's file, run as a script."""

import os
import sys


def main() -> None:
    folder = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(folder))
    if sys.path and os.path.abspath(sys.path[0]) == folder:
        del sys.path[0]
    sys.path.insert(0, root)
    from farcall import _private

    sys.path.remove(root)
    _private.install()
    from farcall.cli.main import main as cli

    sys.argv[0] = "farcall"
    sys.exit(cli())


if __name__ == "__main__":
    main()
