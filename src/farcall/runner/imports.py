"""Which files a container's modules came from: the next container of the function has them looked up ahead."""

from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType

_MOST_BYTES = 128 * 1024  # of paths; the first to be imported are waited for most


def imported_files(modules: Mapping[str, object]) -> list[str]:
    """The files of all `modules` (such as `sys.modules`) but farcall's own, in their order: source, then bytecode."""
    found: dict[str, None] = {}
    size = 0
    for name, module in list(modules.items()):
        if name.partition(".")[0] == "farcall":
            continue
        # Anything may stand there, also what imports when it is looked at, or raises.
        spec = vars(module).get("__spec__") if isinstance(module, ModuleType) else None
        if not isinstance(spec, ModuleSpec) or not spec.has_location:
            continue
        for path in (spec.origin, spec.cached):
            if path and path not in found and path.isprintable():
                size += len(path.encode()) + 1
                if size > _MOST_BYTES:
                    return list(found)
                found[path] = None
    return list(found)
