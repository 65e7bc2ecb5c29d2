"""`farcall profile`: names for servers on other machines, in the config file."""

import argparse
import json
import re
import sys
import tomllib
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import IO, cast

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
    servers = {name: str(table.get("server", "")) for name, table in _profiles(settings.paths().config_file).items()}
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
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(file, "ab", buffering=0) as out:
            flock(out, LOCK_EX)  # against others of these commands
            _append(file, out, name, f'[profiles.{name}]\nserver = "{address}"\n')
    except errors.FarcallError:  # some of which are OSErrors, too
        raise
    except OSError as error:
        raise errors.InvalidError(f"{file} cannot be written: {error.strerror}") from error
    print(f"profile {name} is {address}; use it: farcall run --profile {name} main.py", file=sys.stderr)
    return 0


def _append(file: Path, out: IO[bytes], name: str, table: str) -> None:
    """All of the table, or nothing, and only where the file can be read afterwards."""
    if name in _profiles(file):
        raise errors.AlreadyExistsError(f"the profile {name!r} is in {file} already; change or remove it there")
    before = file.read_bytes()
    added = ("" if not before else "\n" if before.endswith(b"\n") else "\n\n") + table
    try:
        tomllib.loads(before.decode() + added)
    except tomllib.TOMLDecodeError:
        raise errors.InvalidError(
            f"{file} has its profiles in one value, to which no table can be added; write it there yourself: {name}"
        ) from None
    try:
        view = memoryview(added.encode())
        while view:
            view = view[out.write(view) :]
    except OSError:
        out.truncate(len(before))
        raise


def _profiles(file: Path) -> dict[str, Table]:
    """The tables of the profiles in the config file. Raises InvalidError where they are none."""
    profiles: object = read_toml(file).get("profiles", {})
    if not isinstance(profiles, dict):
        raise errors.InvalidError(f"profiles in {file} must be a table, not {profiles!r}: correct it there")
    tables = cast(Table, profiles)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise errors.InvalidError(f"profiles.{name} in {file} must be a table, not {table!r}: correct it there")
    return tables
