"""The runner directory: farcall, and what it imports, for one kind of interpreter; its use: `farcall._private`.

    <data>/runner/dependencies/<tag>-<version>/msgspec/                 fetched or copied once
    <data>/runner/<farcall version>-<source stamp>/<tag>/               a runner directory
        farcall/  msgspec/  cloudpickle/  path/farcall/__init__.py

A runner directory is complete as soon as it has its name (it is renamed into place) and never changes afterwards. Its
files are compiled, because containers see it read-only.
"""

import os
import re
import sys
import time
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from farcall import _private
from farcall.errors import InternalError, InvalidError, ResourceExhaustedError
from farcall.interpreters.probe import Details, details
from farcall.settings.paths import paths, private_directory
from farcall.version import __version__

KEEP = 7 * 86400  # seconds that a runner directory of another version stays after it was last asked for
_TOUCH = 3600  # seconds; how stale the mark of the last use may get
_INSTALL_TIMEOUT = 180.0  # seconds
_MINIMUM_MSGSPEC = "0.19"

# The whole of <runner directory>/path/farcall/__init__.py: `import farcall` in a child that inherited only sys.path.
_ENTRANCE = '''\
"""Leads to the farcall that lies beside this folder, and makes nothing else importable."""

import importlib.util
import os
import sys

_package = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "farcall")
_spec = importlib.util.spec_from_file_location(
    "farcall", os.path.join(_package, "__init__.py"), submodule_search_locations=[_package]
)
_module = importlib.util.module_from_spec(_spec)
sys.modules["farcall"] = _module
_spec.loader.exec_module(_module)
'''

# Compiles what has not been compiled below the folder that is its argument. "Unchecked", because these files never
# change: an import then does not even look at the source.
COMPILE = """\
import glob, os, py_compile, sys
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        compiled = os.path.join(folder, "__pycache__", name[:-3] + ".*.pyc")
        if name.endswith(".py") and not glob.glob(compiled):
            py_compile.compile(os.path.join(folder, name), doraise=True, invalidation_mode=mode)
"""

_MSGSPEC_IMPORT = re.compile(rb"^([ \t]*)import msgspec[ \t]*(#.*)?$", re.MULTILINE)
_OWN_IMPORTS = frozenset({"_private.py", "_cloudpickle.py"})  # they say how ours are found, and are copied as they are


def runner_path(interpreter: Details) -> Path:
    """The runner directory for `interpreter`, made first if it is missing.

    Safe to call from any number of processes at once. Raises `InvalidError` with the one line to run where farcall's
    dependencies for that Python can be had neither from it, nor by uv, nor by pip.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if _private.active():
        here = os.path.dirname(package)
        root, stamp, tag = (
            os.path.dirname(os.path.dirname(here)),
            os.path.basename(os.path.dirname(here)),
            os.path.basename(here),
        )
        if tag == interpreter.tag:
            return Path(here)
        found = os.path.join(root, stamp, interpreter.tag)
    else:
        found = str(_place(paths().data / "runner", package, interpreter.tag))
    try:
        used = os.stat(found).st_mtime
    except FileNotFoundError:
        _build(package, Path(found), interpreter)
    else:
        if time.time() - used > _TOUCH:
            os.utime(found)
    return Path(found)


def assemble(interpreter: Details) -> Path:
    """A runner directory in the making, for an interpreter that cannot be run here, such as an image's: all but what is
    compiled. `COMPILE`, run by that interpreter with the folder as its argument, compiles it; then `publish`
    gives it its name.

    Raises `InvalidError` where farcall's dependencies for that Python cannot be fetched.
    """
    root, package = _root_and_package()
    work = _work_folder(root)
    try:
        dependency = _msgspec_for(interpreter, root, foreign=True)
        _fill(work, Path(package), dependency, _latest(root, interpreter.tag))
        _open_to_read(work)
    except OSError as error:
        raise _cannot_write(root, error) from error
    return work


def compile_here(work: Path, interpreter: Details) -> None:
    """Compiles a runner directory in the making where this process's own Python can: one of the same version. Left
    uncompiled it works, and is slower to start."""
    if _same_bytecode(interpreter):
        try:
            _compile(work, interpreter)
        except OSError as error:
            raise _cannot_write(work, error) from error


def publish(work: Path, interpreter: Details) -> Path:
    """Give a compiled runner directory its name; another process may have made the same one meanwhile."""
    import shutil

    root, package = _root_and_package()
    target = _place(root, package, interpreter.tag)
    private_directory(target.parent)
    try:
        _rename(work, target)
    except OSError as error:
        raise _cannot_write(root, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _sweep(root, target)
    return target


def existing(interpreter: Details) -> Path | None:
    """The runner directory for `interpreter`, None where it is still to be made."""
    root, package = _root_and_package()
    found = _place(root, package, interpreter.tag)
    try:
        os.utime(found)
    except FileNotFoundError:
        return None
    return found


def _root_and_package() -> tuple[Path, str]:
    """Where runner directories are, and the farcall package that they are made from: this one, which is installed."""
    return private_directory(paths().data / "runner"), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _place(root: Path, package: str, tag: str) -> Path:
    return root / f"{__version__}-{_source_stamp(package):08x}" / tag


def _rename(work: Path, target: Path) -> None:
    try:
        os.rename(work, target)
    except OSError:
        if not target.is_dir():  # else another process made the same one first
            raise


def source() -> str:
    """Which files this farcall is, as "folder@stamp"; "" in a runner directory, whose files never change."""
    if _private.active():
        return ""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return f"{package}@{_source_stamp(package):08x}"


def enter(executable: str, arguments: list[str]) -> NoReturn:
    """Replace this process by the farcall CLI under another interpreter, which need not have farcall."""
    directory = runner_path(details(executable))
    bootstrap = directory / "farcall" / "interpreters" / "bootstrap.py"
    environment = {**os.environ, **_private.home_environment()}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(executable, [executable, str(bootstrap), *arguments], environment)


def _source_stamp(package: str) -> int:
    """Changes when a file of this farcall, or the msgspec or cloudpickle beside it, does."""
    stamp = 0
    folders = [package]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name == "__pycache__":
                    continue
                if entry.is_dir():
                    folders.append(entry.path)
                else:
                    found = entry.stat()
                    # Exclusive or, because scandir's order is not ours to rely on.
                    stamp ^= zlib.crc32(f"{entry.path}:{found.st_mtime_ns}:{found.st_size}".encode())
    for name in ("msgspec", "cloudpickle"):
        found = os.stat(os.path.join(_private.package_directory(name), "__init__.py"))
        stamp ^= zlib.crc32(f"{name}:{found.st_mtime_ns}".encode())
    return stamp


def _build(package: str, target: Path, interpreter: Details) -> None:
    import shutil

    root = private_directory(target.parent.parent)
    private_directory(target.parent)
    dependency = _msgspec_for(interpreter, root)
    previous = _latest(root, interpreter.tag)
    work = _work_folder(root)
    try:
        _fill(work, Path(package), dependency, previous)
        _compile(work, interpreter)
        _open_to_read(work)
        _rename(work, target)
    except OSError as error:
        raise _cannot_write(root, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _sweep(root, target)


def _fill(work: Path, package: Path, dependency: Path, previous: Path | None) -> None:
    """Put all files of a runner directory into the empty folder `work`, but for what is compiled."""
    import shutil

    _copy_farcall(package, work / "farcall", previous)
    shutil.copytree(
        _private.package_directory("cloudpickle"), work / "cloudpickle", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(dependency, work / "msgspec", copy_function=_link)
    (work / "path" / "farcall").mkdir(parents=True)
    (work / "path" / "farcall" / "__init__.py").write_text(_ENTRANCE)


def _work_folder(root: Path) -> Path:
    from tempfile import mkdtemp

    try:
        return Path(mkdtemp(prefix=".building-", dir=root))
    except OSError as error:
        raise _cannot_write(root, error) from error


def _cannot_write(root: Path, error: OSError) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"farcall's files for an interpreter cannot be written to {root}: {error.strerror or error}. "
        "Make room there, or set XDG_DATA_HOME to a directory with room."
    )


def _copy_farcall(source: Path, target: Path, previous: Path | None) -> None:
    """Copy our package, with its imports of msgspec led to `farcall._private`.

    Files unchanged since the `previous` runner directory are linked from there with what was compiled from them: after
    an edit, only the edited file is compiled.
    """
    for folder, folders, files in os.walk(source):
        folders[:] = [name for name in folders if name != "__pycache__"]
        relative = Path(folder).relative_to(source)
        (target / relative).mkdir()
        for name in files:
            original = Path(folder) / name
            status = original.stat()
            earlier = previous / "farcall" / relative / name if previous else None
            # The copy carries the original's time; its size differs by the rewritten lines.
            if earlier and earlier.exists() and earlier.stat().st_mtime_ns == status.st_mtime_ns:
                _link(str(earlier), str(target / relative / name))
                for compiled in (earlier.parent / "__pycache__").glob(f"{earlier.stem}.*.pyc"):
                    (target / relative / "__pycache__").mkdir(exist_ok=True)
                    _link(str(compiled), str(target / relative / "__pycache__" / compiled.name))
                continue
            content = original.read_bytes()
            if name.endswith(".py") and name not in _OWN_IMPORTS:
                content = _MSGSPEC_IMPORT.sub(rb"\1from farcall._private import msgspec", content)
            copy = target / relative / name
            copy.write_bytes(content)
            os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))


def _link(source: str, target: str) -> None:
    """A hard link, or a copy where links are not possible.

    Only between our own runner directories: were our msgspec's shared library the same file as the user's, the dynamic
    linker would load it once for both, and its static types would be initialised twice.
    """
    import shutil

    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _compile(folder: Path, interpreter: Details) -> None:
    """Compile what has not been compiled, for `interpreter`."""
    missing = [
        str(path)
        for path in sorted(folder.rglob("*.py"))
        if not any((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))
    ]
    if not missing:
        return
    # "Unchecked", because these files never change: an import then does not even look at the source.
    if _same_bytecode(interpreter):
        import py_compile

        for path in missing:
            py_compile.compile(path, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        return
    import subprocess

    done = subprocess.run(
        [interpreter.executable, "-I", "-S", "-c", COMPILE, str(folder)], text=True, capture_output=True
    )
    if done.returncode != 0:
        raise InternalError(
            f"{interpreter.executable} could not compile farcall's files in {folder}: {done.stderr.strip()}"
        )


def _uv_platform(interpreter: Details) -> str:
    """uv's word for the interpreter's machine and C library."""
    machine = "aarch64" if "aarch64" in interpreter.tag else "x86_64"
    return f"{machine}-unknown-linux-{'musl' if interpreter.tag.endswith('musl') else 'gnu'}"


def uv_executable() -> str | None:
    """uv: the one installed with farcall, else the one on PATH."""
    import shutil

    try:
        from uv import find_uv_bin
    except ImportError:
        return shutil.which("uv")
    try:
        return str(find_uv_bin())
    except FileNotFoundError:
        return shutil.which("uv")


def _open_to_read(folder: Path) -> None:
    """Let everyone read what lies in `folder`, whatever the umask: a container's root is another user to the kernel."""
    for path in (folder, *folder.rglob("*")):
        if path.stat().st_nlink == 1 or path.is_dir():
            os.chmod(path, 0o755 if path.is_dir() else 0o644)


def _same_bytecode(interpreter: Details) -> bool:
    return interpreter.version.split(".")[:2] == [str(number) for number in sys.version_info[:2]]


def _latest(root: Path, tag: str) -> Path | None:
    found = [path for path in root.glob(f"*/{tag}") if path.parent.name != "dependencies"]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _sweep(root: Path, keep: Path) -> None:
    """Remove what nobody has asked for lately: runner directories of other versions, and work that was cut short."""
    import shutil

    now = time.time()
    for path in [*root.glob("*/cp*"), *root.glob(".building-*")]:
        limit = _TOUCH if path.name.startswith(".") else KEEP
        try:
            if path != keep and path.parent.name != "dependencies" and now - path.stat().st_mtime > limit:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            continue


def _msgspec_for(interpreter: Details, root: Path, *, foreign: bool = False) -> Path:
    """A folder with msgspec, built for `interpreter`: our own, the one it has installed, or one fetched for it. For a
    `foreign` interpreter, which cannot be run here, nothing is compiled."""
    import shutil

    ours = _private.msgspec.__version__
    target = private_directory(root / "dependencies") / f"{interpreter.tag}-{ours}" / "msgspec"
    if target.is_dir():
        return target
    work = _work_folder(root)
    try:
        found = (
            _own_msgspec(interpreter)
            or (None if foreign else _installed_msgspec(interpreter))
            or _fetch_msgspec(interpreter, ours, work / "fetched", foreign=foreign)
        )
        shutil.copytree(found, work / "place" / "msgspec", ignore=shutil.ignore_patterns("__pycache__", "*.pyi"))
        if not foreign:
            _compile(work / "place", interpreter)
        _open_to_read(work / "place")
        try:
            os.rename(work / "place", target.parent)
        except OSError:
            if not target.is_dir():
                raise
    except OSError as error:
        raise _cannot_write(root, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _own_msgspec(interpreter: Details) -> Path | None:
    folder = Path(_private.package_directory("msgspec"))
    return folder if _fits(folder, interpreter) else None


def _installed_msgspec(interpreter: Details) -> Path | None:
    for entry in interpreter.sys_path:
        folder = Path(entry) / "msgspec"
        if folder.is_dir():
            versions = [
                path.name.split("-")[1].removesuffix(".dist-info") for path in Path(entry).glob("msgspec-*.dist-info")
            ]
            new = any(_numbers(version) >= _numbers(_MINIMUM_MSGSPEC) for version in versions)
            return folder if new and _fits(folder, interpreter) else None
    return None


def _fits(folder: Path, interpreter: Details) -> bool:
    return (folder / f"_core.{interpreter.soabi}.so").exists()


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


def _fetch_msgspec(interpreter: Details, version: str, target: Path, *, foreign: bool) -> Path:
    import shutil
    import subprocess

    wanted = f"msgspec=={version}"
    common = ["--quiet", "--no-deps", "--only-binary=:all:", "--target", str(target)]
    minor = ".".join(interpreter.version.split(".")[:2])
    attempts: list[list[str]] = []
    if uv := uv_executable():
        which_python = ["--python", interpreter.executable]
        if foreign:
            which_python = ["--python", sys.executable, "--python-version", minor]
            which_python += ["--python-platform", _uv_platform(interpreter)]
        attempts.append([uv, "pip", "install", *which_python, *common, wanted])
    if not foreign:
        attempts.append([interpreter.executable, "-m", "pip", "install", *common, wanted])
    if find_spec("pip"):
        attempts.append([sys.executable, "-m", "pip", "install", *common, "--python-version", minor, wanted])
    said = ""
    for command in attempts:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
            continue
        if done.returncode == 0 and _fits(target / "msgspec", interpreter):
            return target / "msgspec"
        said = (done.stderr.strip().splitlines() or [f"{command[0]} brought none for {interpreter.tag}"])[-1]
        shutil.rmtree(target, ignore_errors=True)
    raise InvalidError(
        f"farcall's own dependency msgspec could not be fetched for {interpreter.executable} "
        f"(Python {interpreter.version}): {said}\n"
        f"With network access, run: {interpreter.executable} -m pip install 'msgspec>={_MINIMUM_MSGSPEC}'"
    )
