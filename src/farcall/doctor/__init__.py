"""What this machine has of what farcall can use, what each is for, and the one line that gets what is missing.

Nothing here needs root, changes the machine or hangs: what might is tried in a child that is given up after a while.
"""

from farcall.doctor.apparmor import profile as apparmor_profile
from farcall.doctor.finding import Finding, Status
from farcall.doctor.report import probe, run

__all__ = ["Finding", "Status", "apparmor_profile", "probe", "run"]
