"""What a runner says that it has imported, whatever stands in `sys.modules`."""

import wave
from importlib.machinery import ModuleSpec
from types import ModuleType

import farcall.runner.imports
from farcall.runner.imports import imported_files


class _Touchy(ModuleType):
    def __getattr__(self, name: str) -> object:
        raise RuntimeError(f"{name} was asked for, which imports a gigabyte")


def _module(name: str, path: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, origin=path)
    module.__spec__.has_location = True
    return module


def test_files_of_modules_in_order() -> None:
    assert wave.__spec__ is not None
    modules = {
        "touchy": _Touchy("touchy"),
        "nothing": None,
        "number": 3,
        "bare": ModuleType("bare"),
        "surrogate": _module("surrogate", "/srv/\udcff.py"),
        "two": _module("two", "/srv/two\0names.py"),
        "native": _module("native", "/srv/native.so"),
        "wave": wave,
        "again": _module("again", "/srv/native.so"),
        "farcall.runner.imports": farcall.runner.imports,
    }
    assert imported_files(modules) == ["/srv/native.so", wave.__spec__.origin, wave.__spec__.cached]


def test_there_is_a_limit() -> None:
    folder = "/srv/" + "x" * 200
    found = imported_files({f"m{number}": _module(f"m{number}", f"{folder}/{number}.so") for number in range(3000)})
    assert found[0] == f"{folder}/0.so"
    assert 120 * 1024 < sum(len(path) + 1 for path in found) <= 128 * 1024
