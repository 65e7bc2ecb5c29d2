"""Programs written for the reference API: `import modal` finds farcall, and its old names go on working.

`install()` puts one finder on `sys.meta_path`; `modal` and each `modal.x` then are farcall's own module objects, so
that `modal.App is farcall.App`. Nothing is changed before `install()` is called, and calling it again changes nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from farcall import errors

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:  # the import system asks for methods, not for these; their import would take 5 ms in each container
    Loader = MetaPathFinder = object

NAME = "modal"

# Not `runner`, `server` and `cli`: `import modal.server` would put the SDK's module in the place of farcall's own.
_MODULES = {
    "app": "farcall.sdk.app",
    "billing": "farcall.sdk.billing",
    "call_graph": "farcall.sdk.types",
    "client": "farcall.sdk.client",
    "cloud_bucket_mount": "farcall.sdk.cloud_bucket_mount",
    "cls": "farcall.sdk.cls",
    "container_process": "farcall.sdk.sandbox",
    "dict": "farcall.sdk.dict",
    "environments": "farcall.sdk.environment",
    "exception": "farcall.errors",
    "experimental": "farcall.sdk.experimental",
    "file_pattern_matcher": "farcall.sdk.file_pattern_matcher",
    "functions": "farcall.sdk.function",
    "gpu": "farcall.sdk.gpu",
    "image": "farcall.sdk.image",
    "network_file_system": "farcall.sdk.network_file_system",
    "output": "farcall.sdk.output",
    "partial_function": "farcall.sdk.partial",
    "proxy": "farcall.sdk.proxy",
    "queue": "farcall.sdk.queue",
    "retries": "farcall.sdk.retries",
    "sandbox": "farcall.sdk.sandbox",
    "schedule": "farcall.sdk.schedule",
    "scheduler_placement": "farcall.sdk.scheduler_placement",
    "secret": "farcall.sdk.secret",
    "types": "farcall.sdk.types",
    "volume": "farcall.sdk.volume",
    "workspace": "farcall.sdk.workspace",
}

EXCEPTIONS = {
    "Error": "FarcallError",
    "InternalFailure": "InternalError",
    "ServiceError": "ConnectionError",
    "ClientClosed": "ConnectionError",
    "SandboxTerminatedError": "RemoteError",
    "SandboxFilesystemError": "RemoteError",
    **{
        f"SandboxFilesystem{kind}Error": "RemoteError"
        for kind in (
            "DirectoryNotEmpty",
            "FileTooLarge",
            "IsADirectory",
            "NotADirectory",
            "NotFound",
            "PathAlreadyExists",
            "Permission",
        )
    },
    "SandboxTimeoutError": "TimeoutError",
    "ExecTimeoutError": "TimeoutError",
    "InteractiveTimeoutError": "TimeoutError",
    "MountUploadTimeoutError": "TimeoutError",
    "VolumeUploadTimeoutError": "TimeoutError",
    "RequestSizeError": "ResourceExhaustedError",
    "DataLossError": "InternalError",
    "LogsFetchError": "FarcallError",
    "SnapshotCreationError": "FarcallError",
    "WorkspaceManagementError": "FarcallError",
    "ModuleNotMountable": "InvalidError",
    "ServerWarning": "FarcallWarning",
    "InternalAPIWarning": "FarcallWarning",
}
"""Names of the reference API's errors, and which of ours stands for each."""


class _Finder(MetaPathFinder):
    """Finds `modal` and its modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        home = _home(fullname)
        if home is not None:
            return ModuleSpec(fullname, _Loader(home), is_package=fullname == NAME)
        if fullname.startswith(f"{NAME}."):
            # Else the search would go on in farcall's folder, and find modules there that happen to have that name.
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


class _Loader(Loader):
    """Gives the farcall module in place of a new one."""

    def __init__(self, home: str) -> None:
        self._home = home
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._home)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has put the alias's spec on the module, which must go on being found by its own name.
        module.__spec__ = self._spec


def _home(fullname: str) -> str | None:
    top, _, rest = fullname.partition(".")
    if top != NAME:
        return None
    return "farcall" if not rest else _MODULES.get(rest)


def install() -> None:
    """From now on, in this process, `import modal` finds farcall. A `modal` that is already imported is left alone."""
    if installed():
        return
    for old, ours in EXCEPTIONS.items():
        setattr(errors, old, getattr(errors, ours))
    sys.meta_path.insert(0, _Finder())


def installed() -> bool:
    """Whether `install` was called."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def old_name(name: str) -> Any:
    """What a name that farcall's root does not have meant in the reference API.

    Raises:
        AttributeError: it meant nothing there either.
    """
    from farcall.sdk.deprecations import deprecated

    if name == "Stub":
        deprecated("Stub is now App")
        return importlib.import_module("farcall.sdk.app").App
    if name == "Error":
        return errors.FarcallError
    if name == "exception":
        return errors
    if name == "Mount":
        deprecated("Mount is gone: use Image.add_local_dir, add_local_file or add_local_python_source")
        from farcall.sdk.unimplemented import Later

        return Later("Mount")
    if name in _MODULES and installed():
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'farcall' has no attribute {name!r}")
