"""The public surface: what `import farcall` offers, that it is documented, and what it costs."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import farcall
import farcall.sdk

LATE = ["asyncio", "pickle", "cloudpickle", "msgspec", "uvloop", "sqlite3", "subprocess", "socket", "httpx", "obstore"]


def sdk_names() -> dict[str, str]:
    """Public name to the module of farcall.sdk that defines it."""
    names: dict[str, str] = {}
    for module_info in pkgutil.iter_modules(farcall.sdk.__path__, "farcall.sdk."):
        module = importlib.import_module(module_info.name)
        for name in getattr(module, "__all__", ()):
            assert name not in names, f"{name} is public in both {names[name]} and {module_info.name}"
            names[name] = module_info.name
    return names


def test_the_root_offers_what_the_sdk_modules_define() -> None:
    assert sorted(set(farcall.__all__) - {"__version__", "errors"}) == sorted(sdk_names())


def test_all_is_sorted_and_every_name_resolves() -> None:
    assert list(farcall.__all__) == sorted(farcall.__all__)
    for name in farcall.__all__:
        assert getattr(farcall, name) is not None
    assert set(farcall.__all__) <= set(dir(farcall))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = farcall.no_such_name  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(farcall.__all__))
def test_every_public_object_has_a_docstring(name: str) -> None:
    value = getattr(farcall, name)
    if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
        return
    assert inspect.getdoc(value), f"farcall.{name} has no docstring"
    if inspect.isclass(value):
        for member_name, member in vars(value).items():
            if member_name.startswith("_") or not (inspect.isroutine(member) or isinstance(member, property)):
                continue
            assert inspect.getdoc(member), f"farcall.{name}.{member_name} has no docstring"


def test_import_loads_nothing_heavy() -> None:
    program = (
        "import sys; before = set(sys.modules); import farcall; "
        f"print(sorted((set(sys.modules) - before) & set({LATE!r})))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("module", ["farcall.cli.main", "farcall.server.main", "farcall.server.server"])
def test_what_only_jobs_need_is_loaded_by_jobs(module: str) -> None:
    program = f"import sys, {module}; print(sorted({{'httpx', 'zstandard', 'tarfile'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_import_starts_no_thread() -> None:
    program = "import threading, farcall; print(threading.active_count())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "1\n"
