"""`farcall config show`: every setting, its value, and where that comes from."""

import argparse
import sys
from pathlib import Path

from farcall import errors, settings
from farcall.cli.terminal import Style
from farcall.cli.usage import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    show = commands.add_parser("show", help="print all settings with their origin")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.add_argument("--profile", metavar="NAME", help="show what holds under this profile")


def run(options: argparse.Namespace) -> int:
    wrong: dict[str, str] = {}
    try:
        found = settings.load({"profile": options.profile}, Path.cwd(), wrong=wrong)
    except errors.InvalidError as error:
        raise UsageError(str(error)) from None
    places = settings.paths()
    if options.json:
        import json

        print(
            json.dumps(
                {
                    "settings": {name: value._asdict() for name, value in found.values.items()},
                    "wrong": wrong,
                    "profiles": found.profiles,
                    "config_file": str(places.config_file),
                    "state": str(places.state),
                    "socket": str(places.server_socket),
                },
                indent=2,
            )
        )
    else:
        _print_table(found, places, wrong)
    for warning in found.warnings:
        print(f"farcall: {warning}", file=sys.stderr)
    for message in wrong.values():
        print(f"farcall: {message}", file=sys.stderr)
    return 2 if wrong else 0


def _print_table(found: settings.Settings, places: settings.Paths, wrong: dict[str, str]) -> None:
    style = Style.of(sys.stdout)
    shown = {name: _shown(value.value) for name, value in found.values.items()}
    name_width, value_width = max(map(len, shown)), max(map(len, shown.values()))
    for setting in settings.SETTINGS:
        origin = found.values[setting.name].origin
        if setting.name in wrong:
            print(style.red(f"{setting.name:{name_width}}  {'WRONG':{value_width}}  {wrong[setting.name]}"))
            continue
        line = f"{setting.name:{name_width}}  {shown[setting.name]:{value_width}}  {origin}"
        print(style.dim(line) if origin == "default" else line)
    print()
    exists = "" if places.config_file.exists() else " (does not exist)"
    print(f"config file  {places.config_file}{exists}")
    print(f"profiles     {', '.join(found.profiles) or 'none'}")
    print(f"state        {places.state}")
    print(f"socket       {places.server_socket}")


def _shown(value: bool | str | None) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else value
