"""What an interpreter is and which of the host's folders it needs, found by running it once."""

import json
import os
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from farcall.errors import InvalidError
from farcall.settings.paths import paths

if TYPE_CHECKING:
    from farcall.spec.container import Interpreter

_FORMAT = 1  # of the cached reports
_TIMEOUT = 30.0  # seconds; a site-packages on a slow disk may import much in its .pth files
MINIMUM = (3, 11)

# Environment variables that change what an interpreter imports, and so belong to the identity of a report.
_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONSAFEPATH", "HOME")

# Folders that hold everybody's files. A container gets what an interpreter needs of them, never one as a whole.
_NEVER = frozenset(
    {"/", "/bin", "/boot", "/dev", "/etc", "/home", "/media", "/mnt", "/opt", "/proc", "/root", "/run", "/sbin"}
    | {"/srv", "/sys", "/tmp", "/usr/local", "/var", "/var/tmp"}
)


class Details(NamedTuple):
    """An interpreter as probed. `paths` and `warnings` are as `farcall.spec.container.Interpreter` has them; `warnings`
    says, one line each, which folder it uses that no container is given."""

    executable: str
    version: str
    tag: str
    paths: tuple[str, ...]
    warnings: tuple[str, ...]
    soabi: str
    prefix: str
    sys_path: tuple[str, ...]


def probe(executable: str) -> "Interpreter":
    """The interpreter as a container spec has it, its runner directory made if it was missing."""
    from farcall.interpreters.private import runner_path
    from farcall.spec.container import Interpreter

    found = details(executable)
    return Interpreter(
        executable=found.executable,
        version=found.version,
        tag=found.tag,
        paths=found.paths,
        runner_path=str(runner_path(found)),
    )


def details(executable: str) -> Details:
    """What `executable` is. Runs it once, then remembers on disk until it, or a folder it imports from, has changed.

    Raises `InvalidError` where it is missing, does not work, is not CPython or is older than Python 3.11.
    """
    executable = os.path.abspath(executable)
    environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if environment.get("PYTHONPATH"):
        entries = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in entries if entry)
    identity = json.dumps([_FORMAT, executable, environment])
    file = os.path.join(paths().cache, f"interpreter-{zlib.crc32(identity.encode()):08x}.json")
    try:
        with open(file, encoding="utf-8") as cached:
            entry: dict[str, Any] = json.load(cached)
        if entry["identity"] == identity and all(_stamp(path) == stamp for path, stamp in entry["stamps"].items()):
            return _details_from(entry["details"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    report = _run(executable, environment)
    if os.path.realpath(report["executable"]) != os.path.realpath(executable):
        # A script that picks a Python, as pyenv's shims do, may pick another one tomorrow or in another folder.
        return details(report["executable"])
    found = _details(executable, report, *_needed(executable, report))
    watched: list[str] = [executable, os.path.join(found.prefix, "pyvenv.cfg"), *report["path"], *report["watch"]]
    path: list[str] = report["path"]
    for folder in path:
        if os.path.isdir(folder):
            watched += [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".pth")]
    entry = {"identity": identity, "stamps": {path: _stamp(path) for path in watched}, "details": found._asdict()}
    _remember(file, entry)
    return found


def _remember(file: str, entry: dict[str, Any]) -> None:
    temporary = f"{file}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as out:
            json.dump(entry, out)
        os.replace(temporary, file)
    except OSError:  # a full disk: the next time is as slow as this one
        if os.path.exists(temporary):
            os.unlink(temporary)


def _details_from(values: dict[str, Any]) -> Details:
    restored: dict[str, Any] = values | {name: tuple(values[name]) for name in ("paths", "warnings", "sys_path")}
    return Details(**restored)


def _stamp(path: str) -> list[int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    # A folder's size says nothing on some filesystems, and its change time changes with its owner: mtime and inode do.
    return [found.st_mtime_ns, found.st_ino]


def program() -> str:
    """What an interpreter runs with -c to tell about itself; `report_in` finds its word in what it prints."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.py")
    with open(script, encoding="utf-8") as file:
        return file.read()


def report_in(output: str) -> dict[str, Any] | None:
    """What the interpreter said, None where it did not get that far."""
    marked = [line for line in output.splitlines() if line.startswith("farcall-interpreter:")]
    return json.loads(marked[-1].partition(":")[2]) if marked else None


def _run(executable: str, environment: dict[str, str]) -> dict[str, Any]:
    import subprocess

    remedy = "Make its environment again, or name another interpreter with --python."
    try:
        result = subprocess.run(
            [executable, "-c", program()],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
        )
    except OSError as error:
        raise InvalidError(f"the Python at {executable} cannot be run: {error.strerror}. {remedy}") from error
    except subprocess.TimeoutExpired as error:
        raise InvalidError(f"the Python at {executable} did not answer within {_TIMEOUT:.0f} s. {remedy}") from error
    report = report_in(result.stdout.decode("utf-8", "replace"))
    if report is None:
        said = result.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = said[-1][-200:] if said else f"it ended with status {result.returncode} and said nothing"
        raise InvalidError(f"the Python at {executable} does not work: {reason}. {remedy}")
    version = tuple(int(part) for part in report["version"].split("."))
    if version < MINIMUM:
        raise InvalidError(
            f"{executable} is Python {report['version']}; farcall needs {MINIMUM[0]}.{MINIMUM[1]} or newer. "
            "Name one with --python, for example `--python 3.12`."
        )
    if report["implementation"] != "cpython":
        raise InvalidError(f"{executable} is {report['implementation']}; farcall runs code with CPython. {remedy}")
    return report


def details_of(report: dict[str, Any]) -> Details:
    """An interpreter that is no file of this machine, such as an image's, from the report it gave."""
    return _details(report["executable"], report, (), ())


def details_of_tag(executable: str, version: str, tag: str) -> Details:
    """An interpreter that is no file of this machine, of which only this is known. What its extension modules are
    called follows from the tag."""
    abi, platform, libc = tag.split("-")  # "cp312", "linux_x86_64", "gnu"
    soabi = f"cpython-{abi.removeprefix('cp')}-{platform.removeprefix('linux_')}-linux-{libc}"
    return Details(executable, version, tag, (), (), soabi, "", ())


def _details(executable: str, report: dict[str, Any], chosen: tuple[str, ...], warnings: tuple[str, ...]) -> Details:
    soabi: str = report["soabi"]  # "cpython-311-x86_64-linux-gnu", "cpython-313t-..." without the GIL
    abi = soabi.split("-")[1] if soabi.count("-") else "".join(report["version"].split(".")[:2])
    tag = f"cp{abi}-{report['platform'].replace('-', '_').replace('.', '_')}-{report['libc']}"
    return Details(
        executable=executable,
        version=report["version"],
        tag=tag,
        paths=chosen,
        warnings=warnings,
        soabi=soabi,
        prefix=report["prefixes"][0],
        sys_path=tuple(report["path"]),
    )


def _needed(executable: str, report: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The host's folders (and zip files) a container needs, none inside another, and what was refused, in words."""
    wanted: dict[str, str] = {}  # path -> why
    for path in report["prefixes"]:
        wanted.setdefault(path, "its prefix")
    for path in report["stdlib"]:
        wanted.setdefault(path, "its standard library")
    for path in report["path"]:
        wanted.setdefault(path, "an entry of its sys.path")
    for path in report["editable"]:
        wanted.setdefault(path, "an editable install")
    for path in report["libraries"]:
        wanted.setdefault(path, "its shared libraries")
    for path in _link_folders(executable):
        wanted.setdefault(path, "a link to its executable")
    homes = _homes()
    taken: list[str] = []
    warnings: list[str] = []
    for path, why in wanted.items():
        # A link to a folder is needed under its own name as well as under the name of what it leads to.
        for place in dict.fromkeys((os.path.normpath(path), os.path.realpath(path))):
            if not os.path.exists(place):
                continue
            if place in _NEVER or place in homes:
                warnings.append(f"containers are not given {place} ({why}): it holds more than this interpreter needs")
            else:
                taken.append(place)
    unique = sorted(set(taken), key=lambda place: (place.count(os.sep), place))
    kept: list[str] = []
    for place in unique:
        if not any(place == above or place.startswith(above + os.sep) for above in kept):
            kept.append(place)
    return tuple(sorted(kept)), tuple(dict.fromkeys(warnings))


def _link_folders(executable: str) -> list[str]:
    """The folders of all symbolic links on the way from `executable` to the real file."""
    folders: list[str] = []
    for _ in range(40):  # the kernel's own limit
        folders.append(os.path.dirname(executable))
        if not os.path.islink(executable):
            break
        executable = os.path.normpath(os.path.join(os.path.dirname(executable), os.readlink(executable)))
    return folders


def _homes() -> set[str]:
    homes = {os.path.expanduser("~"), os.environ.get("HOME", "")}
    try:
        import pwd

        # Service accounts have system folders (/usr/sbin, /bin) for a home.
        homes |= {entry.pw_dir for entry in pwd.getpwall() if entry.pw_uid == 0 or entry.pw_uid >= 1000}
    except (ImportError, OSError):
        pass
    return {os.path.realpath(home) for home in homes if home} | {os.path.normpath(home) for home in homes if home}
