"""`python -m farcall` is the command `farcall`."""

import sys

from farcall.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
