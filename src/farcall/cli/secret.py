"""`farcall secret`: environment variables for containers, stored under a name."""

import argparse
import sys
from pathlib import Path
from typing import Any, Literal, cast

from farcall import errors
from farcall.cli.confirm import add_yes, confirm
from farcall.cli.usage import UsageError

_VALUES = """\
values, from any of:
  KEY=VALUE                 stands in your shell's history, and in the process list for a moment
  KEY=-                     asked for, unseen; without a terminal, read from standard input
  --from-file KEY=FILE      what a file holds
  --from-dotenv FILE        lines of KEY=VALUE; - is standard input
  --from-json FILE          an object of strings; - is standard input
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    create = commands.add_parser("create", help="store a secret", epilog=_VALUES)
    create.add_argument("--force", action="store_true", help="replace one of that name, with all its values")
    update = commands.add_parser("update", help="change or add values of a secret", epilog=_VALUES)
    for command in (create, update):
        command.add_argument("name", metavar="NAME")
        command.add_argument("values", metavar="KEY=VALUE", nargs="*")
        command.add_argument("--from-file", metavar="KEY=FILE", action="append", default=[])
        command.add_argument("--from-dotenv", metavar="FILE", action="append", default=[])
        command.add_argument("--from-json", metavar="FILE", action="append", default=[])
    listing = commands.add_parser("list", help="the secrets there are, without their values")
    listing.add_argument("--json", action="store_true", help="print JSON")
    delete = commands.add_parser("delete", help="delete a secret, for good")
    delete.add_argument("name", metavar="NAME")
    delete.add_argument("--allow-missing", action="store_true", help="no error where there is none")
    add_yes(delete)


def run(options: argparse.Namespace) -> int:
    if options.command == "list":
        return _list(as_json=options.json)
    if options.command == "delete":
        return _delete(options.name, allow_missing=options.allow_missing, yes=options.yes)
    values = _values(options)
    if not values:
        raise UsageError(
            f"no values for secret {options.name!r}: give some as KEY=-, or see `farcall secret create -h`"
        )
    if options.command == "update":
        return _put(options.name, values, "merge")
    return _put(options.name, values, "replace" if options.force else "never")


def _values(options: argparse.Namespace) -> dict[str, str]:
    """All values that the command line leads to. No message of an error has one of them."""
    found: list[tuple[str, str]] = []
    given = _Input()
    for source in options.from_dotenv:
        found += _dotenv(source, given).items()
    for source in options.from_json:
        found += _json(source, given).items()
    for word in options.from_file:
        key, equals, path = word.partition("=")
        if not equals:
            raise UsageError(f"--from-file {word!r} is not KEY=FILE")
        found.append((key, _read(path)))
    for position, word in enumerate(options.values, start=1):
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"value {position} is not KEY=VALUE; to be asked for a value, write KEY=-")
        found.append((key, given.ask(key) if value == "-" else value))
    values: dict[str, str] = {}
    for key, value in found:
        if key in values:
            raise UsageError(f"{key} is given twice")
        values[key] = value
    return values


class _Input:
    """Standard input, for one of the things that can be read from it."""

    def __init__(self) -> None:
        self._reader = ""

    def ask(self, key: str) -> str:
        """The value that is typed in, unseen; or all of what is no terminal, without a last end of line."""
        if sys.stdin.isatty():
            import getpass

            return getpass.getpass(f"{key} (not shown): ", sys.stderr)
        return self.read(f"{key}=-").removesuffix("\n")

    def read(self, reader: str) -> str:
        """All of it, for `reader`."""
        if self._reader:
            raise UsageError(f"{self._reader} and {reader} cannot both be read from standard input")
        self._reader = reader
        text = sys.stdin.read()
        if not text:
            raise UsageError(f"nothing came from standard input for {reader}")
        return text


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise errors.NotFoundError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise errors.InvalidError(f"{path} is no text in UTF-8; encode it, for example with base64") from None


def _dotenv(source: str, given: _Input) -> dict[str, str]:
    from farcall.sdk.dotenv import parse_dotenv, read_dotenv

    return parse_dotenv(given.read("--from-dotenv -"), "standard input") if source == "-" else read_dotenv(Path(source))


def _json(source: str, given: _Input) -> dict[str, str]:
    import json

    name = "standard input" if source == "-" else source
    text = given.read("--from-json -") if source == "-" else _read(source)
    try:
        values: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise errors.InvalidError(
            f"{name} is no JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    if not isinstance(values, dict):
        raise errors.InvalidError(f"{name} holds no JSON object of keys and values")
    found: dict[str, str] = {}
    for key, value in cast("dict[str, Any]", values).items():
        if not isinstance(value, str):
            raise errors.InvalidError(f"{name}: the value of {key} is no string; write it in quotes")
        found[key] = value
    return found


def _put(name: str, values: dict[str, str], existing: Literal["never", "replace", "merge"]) -> int:
    import msgspec

    from farcall.sdk import client
    from farcall.wire.secrets import PutSecret, SecretReport

    running = client.connect_or_start()
    try:
        answer, _ = running.request(lambda seq: PutSecret(seq, name, values, existing))
    finally:
        running.close()
    report = msgspec.msgpack.decode(answer.body, type=SecretReport)
    print(
        f"stored secret {report.name}: {', '.join(report.keys)}\n"
        f'use it: @app.function(secrets=[farcall.Secret.from_name("{report.name}")])',
        file=sys.stderr,
    )
    return 0


def _list(*, as_json: bool) -> int:
    import msgspec

    from farcall.cli.listing import local_time, print_json, print_table, utc_time
    from farcall.sdk import client
    from farcall.wire.secrets import ListSecrets, SecretReport

    running = client.connect_or_start()
    try:
        answer, _ = running.request(ListSecrets)
    finally:
        running.close()
    reports = msgspec.msgpack.decode(answer.body, type=list[SecretReport])
    if as_json:
        print_json(
            [
                {
                    "name": report.name,
                    "secret_id": report.secret_id,
                    "keys": report.keys,
                    "created_at": utc_time(report.created_at),
                    "updated_at": utc_time(report.updated_at),
                }
                for report in reports
            ]
        )
    elif reports:
        print_table(
            ("NAME", "CREATED", "UPDATED", "KEYS"),
            [
                (report.name, local_time(report.created_at), local_time(report.updated_at), ", ".join(report.keys))
                for report in reports
            ],
        )
    else:
        print("no secrets; store one with `farcall secret create NAME KEY=-`", file=sys.stderr)
    return 0


def _delete(name: str, *, allow_missing: bool, yes: bool) -> int:
    from farcall.sdk import client
    from farcall.wire.secrets import DeleteSecret

    if not confirm(f"Delete secret {name}, for good?", yes=yes):
        print("nothing was deleted", file=sys.stderr)
        return 1
    running = client.connect_or_start()
    try:
        running.request(lambda seq: DeleteSecret(seq, name))
    except errors.NotFoundError:
        if not allow_missing:
            raise
        print(f"there is no secret {name}", file=sys.stderr)
        return 0
    finally:
        running.close()
    print(f"deleted secret {name}", file=sys.stderr)
    return 0
