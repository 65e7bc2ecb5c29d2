"""The host matrix: the wheel, hello.py and a map of 100 on hosts that lack something; an image that is built there.
`matrix.py [ROW ...]`.

A row passes with the right answers, or where the first line that farcall writes to stderr names the cause and the
remedy; with `--runtime process` every row must answer. Nothing may stay behind, and no row may take 60 s, or 100 s
where an image is built.
Prints a table; exits with 1 when a row fails. Needs only Python and uv, which farcall brings along; rows that need root
say so without it.

    --prepare DIR   builds the wheel, installs it into DIR/venv and ends
    --farcall FILE  takes this farcall instead of building one; other users must be able to run it
    --list          prints the rows' names
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
REPOSITORY = HERE.parent.parent  # not there where a row carries this file to
ROW_SECONDS, IMAGE_ROW_SECONDS = 60.0, 100.0
COMMAND_SECONDS, IMAGE_COMMAND_SECONDS = 40.0, 60.0
SETTLE_SECONDS = 20.0  # for the last processes of a stopped server to end
SHOWN_LINES = 12  # of the output of a command that went wrong
ORDINARY_USER = 61234  # nobody's, with no entry in /etc/passwd, /etc/subuid or any group

REMEDY = re.compile(r"--runtime process|--privileged|\bsudo\b|\bapt\b|\bsysctl\b|\bmount\b|\bXDG_\w+|farcall doctor")

SQUARES = """
import farcall

app = farcall.App("squares")


@app.function()
def square(number: int) -> int:
    return number * number


@app.local_entrypoint()
def main():
    print("sum of squares:", sum(square.map(range(100))))
"""
# Built on a folder with a Python and a shell, by two steps of which one reads what the other wrote. The containers see
# the image and no host.
IMAGE = """
from pathlib import Path

import farcall

here = Path(__file__).parent
image = (
    farcall.Image.from_scratch()
    .add_local_dir(here / "base", "/", copy=True)
    .env({"PATH": (here / "python_folder").read_text() + ":/bin"} if farcall.is_local() else {})
    .run_commands("echo built > /opt/step", "cat /opt/step /etc/group > /opt/seen")
)
app = farcall.App("image", image=image)


@app.function()
def look() -> str:
    Path("/opt/seen").open("a").write("and written to")
    host = [path for path in ("/usr/share", "/home", "/boot", "/var/lib") if Path(path).exists()]
    return f"{Path('/opt/seen').read_text().split()} {host}"


@app.local_entrypoint()
def main():
    print(look.remote())
"""
PROGRAMS = {"hello.py": "Hello, matrix!", "squares.py": "sum of squares: 328350"}
IMAGE_PROGRAMS = {"image.py": "['built', 'root:x:0:', 'and', 'written', 'to'] []"}

# Carries this file into a container and runs the same there; what it prints is what came of it.
NESTED = """
import subprocess
import sys
from pathlib import Path

import farcall

app = farcall.App("nested")
here = Path(__file__).parent


@app.function(timeout=60)
def inside(files: dict[str, str]) -> str:
    for name, text in files.items():
        Path("/tmp", name).write_text(text)
    command = [sys.executable, "/tmp/matrix.py", "--inside", "/tmp", sys.executable, "-m", "farcall"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout or done.stderr


@app.local_entrypoint()
def main():
    print(inside.remote({name: (here / name).read_text() for name in ("matrix.py", "hello.py", "squares.py")}))
"""


class Row(NamedTuple):
    """A host. `restrictions` are those of restrict.py, the outermost first; "HOME" stands for the row's own.

    `cause` is what the first line must name where containers cannot be made; None where they must be. With `image` the
    row is about an image and its containers, for which there is no other runtime.
    """

    name: str
    restrictions: Sequence[Sequence[str]] = ()
    cause: str | None = None
    image: bool = False
    needs_root: bool = False
    nested: bool = False


AS_USER = ("user", str(ORDINARY_USER))
ROWS = (
    Row("root", needs_root=True),
    Row("ordinary user", [AS_USER]),
    Row("namespaces refused", [AS_USER, ["refuse-namespaces"]], cause=r"namespaces?\b"),
    Row("inside a container", nested=True, cause=r"namespaces?\b"),
    Row("no overlay", [["lacks", "overlay"]], cause=r"overlay"),
    Row("no writable cgroup", [["no-cgroup"]], cause=r"cgroup"),
    Row("read-only /proc", [["readonly-proc"]], cause=r"/proc|id maps"),
    Row("home on another mount", [["home-mount", "HOME"]]),
    Row("image", image=True),
    Row("image, ordinary user", [AS_USER], image=True),
    Row("image, namespaces refused", [AS_USER, ["refuse-namespaces"]], cause=r"namespaces?\b", image=True),
    Row("image, no EROFS", [["lacks", "erofs"]], image=True),
    Row("image, no id maps either", [["lacks", "erofs", "idmap"]], image=True),
    Row("image, no overlay", [["lacks", "overlay"]], image=True),
    Row("image, neither, as a user", [AS_USER, ["lacks", "overlay"]], image=True),
    Row("image, home on a mount", [["home-mount", "HOME"]], image=True),
)


def build(directory: Path) -> Path:
    """Builds the wheel and installs it into an empty environment that any user can run. Returns its farcall."""
    from uv import find_uv_bin  # not there where rows run

    directory.chmod(0o755)
    found = subprocess.run([REPOSITORY / "scripts/find-python"], check=True, capture_output=True, text=True)
    python = found.stdout.strip()
    environment = directory / "venv"
    uv = find_uv_bin()
    quietly([uv, "venv", "--python", python, environment])
    quietly([uv, "build", "--wheel", "--out-dir", directory, REPOSITORY])
    install = [uv, "pip", "install", "--compile-bytecode", "--link-mode", "copy", "--python", environment]
    quietly([*install, next(directory.glob("farcall-*.whl"))])
    return environment / "bin/farcall"


def quietly(command: Sequence[str | Path]) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")


def inside(programs: Path, command: list[str], image: bool) -> None:
    """On the host of a row: runs the programs in its runtimes, stops the server, prints what came of it (JSON)."""
    results: dict[str, list[dict[str, Any]]] = {}
    for runtime in ("native",) if image else ("native", "process"):
        results[runtime] = []
        for program, expected in (IMAGE_PROGRAMS if image else PROGRAMS).items():
            arguments = ["--name", "matrix"] if program == "hello.py" else []
            extra = ["--runtime", "process"] if runtime == "process" else []
            seconds = IMAGE_COMMAND_SECONDS if image else COMMAND_SECONDS
            result = timed([*command, "run", *extra, str(programs / program), *arguments], seconds)
            result["answered"] = result["status"] == 0 and expected in result["stdout"]
            results[runtime].append({"program": program} | result)
    timed([*command, "server", "stop"])
    json.dump(results, sys.stdout)


def timed(command: list[str], seconds: float = COMMAND_SECONDS) -> dict[str, Any]:
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, errors="replace"
        )
        status, stdout, stderr = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as expired:
        status, stdout = -1, ""
        stderr = f"no answer within {seconds:g} s: {(expired.stderr or b'').decode(errors='replace')}"
    except OSError as error:
        status, stdout, stderr = -1, "", str(error)
    return {"status": status, "stdout": stdout, "stderr": stderr, "seconds": time.monotonic() - started}


def run_row(row: Row, farcall: Path, programs: Path, home: Path) -> tuple[str, list[str]]:
    """What containers came to, in a word, and what is wrong with the row: nothing, when it passes."""
    home.mkdir()
    if any(restriction[0] == "user" for restriction in row.restrictions) and os.geteuid() == 0:
        os.chown(home, ORDINARY_USER, ORDINARY_USER)
    python = farcall.parent / "python"
    command: list[str] = []
    for restriction in row.restrictions:
        if restriction[0] != "user" or os.geteuid() == 0:
            arguments = [str(home) if word == "HOME" else word for word in restriction]
            command += [str(python), str(programs / "restrict.py"), *arguments, "--"]
    if row.nested:
        command += [str(farcall), "run", "--quiet", str(programs / "nested.py")]
    else:
        what = "--inside-image" if row.image else "--inside"
        command += [str(python), str(programs / "matrix.py"), what, str(programs), str(farcall)]
    environment = {"HOME": str(home), "PATH": f"{farcall.parent}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    done = subprocess.run(
        command, cwd=programs, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if row.nested:
        subprocess.run([farcall, "server", "stop"], env=environment, capture_output=True)
    left = end_leftovers(home)
    try:
        results = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return "", [f"no results: {done.stdout[-2000:]}{done.stderr[-4000:]}", *left]
    word, wrong = judge(row, results)
    return word, wrong + left


def judge(row: Row, results: dict[str, list[dict[str, Any]]]) -> tuple[str, list[str]]:
    """Whether what came of a row is what it has to be."""
    wrong: list[str] = []
    word = "answers"
    for runtime, outcomes in results.items():
        for outcome in outcomes:
            if outcome["answered"]:
                continue
            program = outcome["program"]
            lines = [line for line in outcome["stderr"].splitlines() if line.strip()]
            # Which Python it is stands before all, and what has been built of an image.
            first = next((line for line in lines if not line.startswith(("python: ", "image: "))), "")
            explained = row.cause is not None and re.search(row.cause, first) and REMEDY.search(first)
            if runtime == "native" and outcome["status"] > 0 and explained:
                word = "explains"
            else:
                shown = "\n".join((outcome["stdout"] + outcome["stderr"]).splitlines()[-SHOWN_LINES:])
                wrong.append(f"{program}, runtime {runtime}: status {outcome['status']}\n{shown}")
    return "" if wrong else word, wrong


def end_leftovers(home: Path) -> list[str]:
    """Ends the processes that a row started and did not end, and says which. They all have the row's home."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (found := with_home(home)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [f"stayed behind: process {pid}: {command}" for pid, command in found.items()]


def with_home(home: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if f"HOME={home}\0".encode() in (entry / "environ").read_bytes() + b"\0":
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
    return found


def run(rows: Sequence[Row], farcall: Path, directory: Path) -> bool:
    """Runs the rows, printing a line for each; whether all passed."""
    from base import make as make_base  # not carried to where rows run

    programs = directory / "programs"
    programs.mkdir()
    for source in (HERE / "matrix.py", HERE / "restrict.py", REPOSITORY / "examples/hello.py"):
        shutil.copy(source, programs)
    (programs / "squares.py").write_text(SQUARES)
    (programs / "nested.py").write_text(NESTED)
    (programs / "image.py").write_text(IMAGE)
    if any(row.image for row in rows):
        (programs / "python_folder").write_text(make_base(farcall.parent / "python", programs / "base"))
    for path in (directory, programs, *programs.iterdir()):
        path.chmod(0o755)
    print(f"{'host':<26}{'containers':<12}{'seconds':>7}  result", flush=True)
    passed = True
    for index, row in enumerate(rows):
        if row.needs_root and os.geteuid() != 0:
            print(f"{row.name:<26}{'':<12}{'':>7}  skipped: needs root", flush=True)
            continue
        started = time.monotonic()
        word, wrong = run_row(row, farcall, programs, directory / f"home{index}")
        seconds = time.monotonic() - started
        if seconds > (limit := IMAGE_ROW_SECONDS if row.image else ROW_SECONDS):
            wrong.append(f"took more than {limit:g} s")
        print(f"{row.name:<26}{word:<12}{seconds:>7.1f}  {'FAILED' if wrong else 'passed'}", flush=True)
        for text in wrong:
            print("    " + text.strip().replace("\n", "\n    "), flush=True)
        passed = passed and not wrong
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--prepare", type=Path, metavar="DIR")
    parser.add_argument("--farcall", type=Path, metavar="FILE")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    by_name = {row.name: row for row in ROWS}
    if options.list:
        print(*by_name, sep="\n")
        return 0
    if options.prepare is not None:
        options.prepare.mkdir(parents=True, exist_ok=True)
        print(build(options.prepare.resolve()))
        return 0
    if unknown := [name for name in options.rows if name not in by_name]:
        parser.error(f"no row {unknown[0]!r}; there are: {', '.join(by_name)}")
    rows = [by_name[name] for name in options.rows] or ROWS
    # A short name under /tmp: sockets below it have 108 bytes for theirs.
    with tempfile.TemporaryDirectory(prefix="fh-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        directory = Path(temporary)
        farcall = options.farcall.absolute() if options.farcall else build(directory)
        return 0 if run(rows, farcall, directory) else 1


if __name__ == "__main__":
    if sys.argv[1:2] in (["--inside"], ["--inside-image"]):
        inside(Path(sys.argv[2]), sys.argv[3:], image=sys.argv[1] == "--inside-image")
    else:
        sys.exit(main())
