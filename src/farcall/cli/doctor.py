"""`farcall doctor`: what this machine offers, what it lacks, and the line that gets it."""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--apparmor-profile",
        action="store_true",
        help="print the AppArmor profile that lets farcall make containers on Ubuntu 24.04, and nothing else",
    )


def run(options: argparse.Namespace) -> int:
    if sys.platform != "linux":
        from farcall.errors import UnimplementedError

        raise UnimplementedError(
            f"farcall makes containers on Linux only, and this is {sys.platform}; `farcall run --local FILE` works "
            "here, and `farcall run --server ssh://user@host FILE` on a Linux machine"
        )
    from farcall import doctor

    if options.apparmor_profile:
        sys.stdout.write(doctor.apparmor_profile())
        return 0
    return doctor.run(sys.stdout, json=options.json)
