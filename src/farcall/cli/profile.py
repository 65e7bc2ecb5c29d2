"""`farcall profile`: names for servers on other machines, in the config file."""

import argparse
import json
import re
import sys

from farcall import errors, settings
from farcall.cli.terminal import Style
from farcall.link.address import Address
from farcall.settings.files import Table, read_toml

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    add = commands.add_parser("add", help="name a server: it is then used with --profile NAME or FARCALL_PROFILE")
    add.add_argument("name", metavar="NAME")
    add.add_argument("server", metavar="URL", help="ssh://[user@]host[:port]; host may be a name of your ssh config")
    listing = commands.add_parser("list", help="the profiles of the config file")
    listing.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    if options.command == "add":
        return _add(options.name, options.server)
    profiles: Table = read_toml(settings.paths().config_file).get("profiles", {})
    servers = {name: str(table.get("server", "")) for name, table in profiles.items()}
    if options.json:
        print(json.dumps(servers, indent=2))
        return 0
    if not servers:
        print("there is no profile; make one: farcall profile add box ssh://user@host", file=sys.stderr)
    style = Style.of(sys.stdout)
    width = max(map(len, servers), default=0)
    for name, server in servers.items():
        print(f"{name:{width}}  {server or style.dim('this machine')}")
    return 0


def _add(name: str, url: str) -> int:
    if not _NAME.fullmatch(name):
        raise errors.InvalidError(f"{name!r} cannot be a profile's name: letters, digits, '-' and '_'")
    address = Address.parse(url)
    file = settings.paths().config_file
    if name in read_toml(file).get("profiles", {}):
        raise errors.AlreadyExistsError(f"the profile {name!r} is in {file} already; change or remove it there")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = file.read_text("utf-8") if file.exists() else ""
        with open(file, "a", encoding="utf-8") as out:
            gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
            out.write(f'{gap}[profiles.{name}]\nserver = "{address}"\n')
    except OSError as error:
        raise errors.InvalidError(f"{file} cannot be written: {error.strerror}") from error
    print(f"profile {name} is {address}; use it: farcall run --profile {name} main.py", file=sys.stderr)
    return 0
