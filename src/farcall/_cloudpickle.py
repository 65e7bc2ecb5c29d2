"""cloudpickle under a name of our own: `farcall._cloudpickle.cloudpickle` is the module the installed package has.

A pickled function names the module whose helpers rebuild it. Under its usual name that module would have to be
importable wherever farcall is, and be of a version that understands ours; under this name it travels with farcall, and
the user's own cloudpickle, of any version or absent, is left alone.
"""

import importlib
import pickle
import sys
from typing import Any

from farcall import _private

__path__ = [_private.package_directory("cloudpickle")]  # makes this module a package whose files are cloudpickle's

_module: Any = importlib.import_module("farcall._cloudpickle.cloudpickle")

CloudPickler: type[pickle.Pickler] = _module.CloudPickler


def adopt_registrations() -> None:
    """Let `cloudpickle.register_pickle_by_value` of the user's own cloudpickle hold for ours too."""
    theirs: Any = sys.modules.get("cloudpickle.cloudpickle")
    if theirs is not None:
        _module._PICKLE_BY_VALUE_MODULES = theirs._PICKLE_BY_VALUE_MODULES
