"""Ubuntu 24.04 lets only programs with an AppArmor profile use user namespaces. This is farcall's."""

import os
import sys

INSTALL = (
    "farcall doctor --apparmor-profile | sudo tee /etc/apparmor.d/farcall >/dev/null "
    "&& sudo apparmor_parser -r /etc/apparmor.d/farcall"
)
_SPECIAL = frozenset(' "\\?*[]{}^@')


def profile(executable: str = sys.executable) -> str:
    """The profile's text, for the interpreter that runs farcall. `INSTALL` is the line that puts it in place.

    AppArmor knows a program by the path of its file, links resolved, so that the profile holds for everything this
    interpreter runs. It takes away no right that an unconfined program has.
    """
    path = "".join(
        f"\\{character}" if character in _SPECIAL else character for character in os.path.realpath(executable)
    )
    return f"""\
# Lets farcall make containers without root (user namespaces), and nothing more than that.
abi <abi/4.0>,
include <tunables/global>

profile farcall "{path}" flags=(unconfined) {{
  userns,

  include if exists <local/farcall>
}}
"""
