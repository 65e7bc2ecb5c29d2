"""farcall: decorate a function, call it, and it runs in its own container.

    import farcall

    app = farcall.App("hello")

    @app.function()
    def square(x: int) -> int:
        return x * x

    @app.local_entrypoint()
    def main():
        print(list(square.map(range(10))))

Everything here is loaded when it is first used.
"""

from __future__ import annotations

from farcall.version import __version__ as __version__

TYPE_CHECKING = False  # typing's own would cost more time to import than all else here

if TYPE_CHECKING:
    from farcall import errors as errors
    from farcall.sdk import billing as billing
    from farcall.sdk import experimental as experimental
    from farcall.sdk import types as types
    from farcall.sdk.app import App as App
    from farcall.sdk.app import LocalEntrypoint as LocalEntrypoint
    from farcall.sdk.client import Client as Client
    from farcall.sdk.cloud_bucket_mount import CloudBucketMount as CloudBucketMount
    from farcall.sdk.cls import Cls as Cls
    from farcall.sdk.cluster import Cluster as Cluster
    from farcall.sdk.context import current_function_call_id as current_function_call_id
    from farcall.sdk.context import current_input_id as current_input_id
    from farcall.sdk.context import is_local as is_local
    from farcall.sdk.decorators import asgi_app as asgi_app
    from farcall.sdk.decorators import batched as batched
    from farcall.sdk.decorators import clustered as clustered
    from farcall.sdk.decorators import concurrent as concurrent
    from farcall.sdk.decorators import enter as enter
    from farcall.sdk.decorators import exit as exit
    from farcall.sdk.decorators import fastapi_endpoint as fastapi_endpoint
    from farcall.sdk.decorators import method as method
    from farcall.sdk.decorators import parameter as parameter
    from farcall.sdk.decorators import sessioned as sessioned
    from farcall.sdk.decorators import web_endpoint as web_endpoint
    from farcall.sdk.decorators import web_server as web_server
    from farcall.sdk.decorators import wsgi_app as wsgi_app
    from farcall.sdk.dict import Dict as Dict
    from farcall.sdk.environment import Environment as Environment
    from farcall.sdk.file_pattern_matcher import FilePatternMatcher as FilePatternMatcher
    from farcall.sdk.function import Function as Function
    from farcall.sdk.function_call import FunctionCall as FunctionCall
    from farcall.sdk.image import Image as Image
    from farcall.sdk.interact import interact as interact
    from farcall.sdk.network_file_system import NetworkFileSystem as NetworkFileSystem
    from farcall.sdk.output import enable_output as enable_output
    from farcall.sdk.proxy import Proxy as Proxy
    from farcall.sdk.queue import Queue as Queue
    from farcall.sdk.retries import Retries as Retries
    from farcall.sdk.sandbox import Probe as Probe
    from farcall.sdk.sandbox import Sandbox as Sandbox
    from farcall.sdk.sandbox import SandboxSnapshot as SandboxSnapshot
    from farcall.sdk.schedule import Cron as Cron
    from farcall.sdk.schedule import Period as Period
    from farcall.sdk.scheduler_placement import SchedulerPlacement as SchedulerPlacement
    from farcall.sdk.secret import Secret as Secret
    from farcall.sdk.server import Server as Server
    from farcall.sdk.tunnel import Tunnel as Tunnel
    from farcall.sdk.tunnel import forward as forward
    from farcall.sdk.volume import Volume as Volume
    from farcall.sdk.workspace import Workspace as Workspace

_MODULES = {
    "app": ("App", "LocalEntrypoint"),
    "client": ("Client",),
    "cloud_bucket_mount": ("CloudBucketMount",),
    "cls": ("Cls",),
    "cluster": ("Cluster",),
    "context": ("current_function_call_id", "current_input_id", "is_local"),
    "decorators": (
        "asgi_app",
        "batched",
        "clustered",
        "concurrent",
        "enter",
        "exit",
        "fastapi_endpoint",
        "method",
        "parameter",
        "sessioned",
        "web_endpoint",
        "web_server",
        "wsgi_app",
    ),
    "dict": ("Dict",),
    "environment": ("Environment",),
    "file_pattern_matcher": ("FilePatternMatcher",),
    "function": ("Function",),
    "function_call": ("FunctionCall",),
    "image": ("Image",),
    "interact": ("interact",),
    "network_file_system": ("NetworkFileSystem",),
    "output": ("enable_output",),
    "proxy": ("Proxy",),
    "queue": ("Queue",),
    "retries": ("Retries",),
    "sandbox": ("Probe", "Sandbox", "SandboxSnapshot"),
    "schedule": ("Cron", "Period"),
    "scheduler_placement": ("SchedulerPlacement",),
    "secret": ("Secret",),
    "server": ("Server",),
    "tunnel": ("Tunnel", "forward"),
    "volume": ("Volume",),
    "workspace": ("Workspace",),
}
_HOMES = {name: f"farcall.sdk.{module}" for module, names in _MODULES.items() for name in names}
_SUBMODULES = {name: f"farcall.sdk.{name}" for name in ("billing", "experimental", "types")}

__all__ = sorted(["__version__", "errors", *_HOMES])  # pyright: ignore[reportUnsupportedDunderAll]


if not TYPE_CHECKING:  # so that type checkers report names that do not exist

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
        elif name == "errors":
            return import_module("farcall.errors")
        elif name in _SUBMODULES:
            value = import_module(_SUBMODULES[name])
        elif name.startswith("_"):
            raise AttributeError(f"module 'farcall' has no attribute {name!r}")
        else:
            value = import_module("farcall.compat").old_name(name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
