"""`farcall init`: a program that runs, to begin with."""

import argparse
import sys
from importlib.resources import files
from pathlib import Path

from farcall.cli.usage import UsageError

TEMPLATES = {
    "map": "a function over many inputs at once",
    "class": "a class that loads something once and then serves calls",
    "train": "a long job that streams its progress",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", default="main.py", metavar="FILE", help="what to write (default main.py)")
    about = "; ".join(f"{name}: {what}" for name, what in TEMPLATES.items())
    parser.add_argument("--template", choices=TEMPLATES, default="map", help=about)


def run(options: argparse.Namespace) -> int:
    target = Path(options.file)
    if target.is_dir():
        raise UsageError(f"{target} is a folder; name a file in it: farcall init {target / 'main.py'}")
    if not target.suffix:
        target = target.with_name(f"{target.name}.py")
    elif target.suffix != ".py":
        raise UsageError(f"{target} is no name of a Python file; did you mean {target.with_suffix('.py')}?")
    content = files("farcall.cli.templates").joinpath(f"{options.template}_.py").read_text("utf-8")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise UsageError(f"{target} exists, and is left as it is; name another file: farcall init FILE") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"there is no folder {target.parent}") from None
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from None
    print(f"wrote {target}: {TEMPLATES[options.template]}. Run it: farcall run {target}", file=sys.stderr)
    return 0
