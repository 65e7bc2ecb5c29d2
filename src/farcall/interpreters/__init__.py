"""The Python that runs user code: which one, what it needs around it, and farcall's own files for it."""

from farcall.interpreters.choose import Choice, choose, environment_of, is_own
from farcall.interpreters.probe import Details, details, probe

__all__ = ["Choice", "Details", "choose", "details", "environment_of", "is_own", "probe"]
