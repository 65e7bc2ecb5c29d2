"""`python -m farcall.launcher --state DIR`: run a launcher."""

import sys

from farcall.launcher.process import main

sys.exit(main(sys.argv[1:]))
