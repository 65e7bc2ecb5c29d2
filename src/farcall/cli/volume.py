"""`farcall volume`: files under a name, that containers share."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from farcall import errors
from farcall.cli.confirm import add_yes, confirm
from farcall.cli.usage import UsageError

if TYPE_CHECKING:
    from farcall.sdk.types import FileEntry
    from farcall.sdk.volume import Volume


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    create = commands.add_parser("create", help="make an empty volume")
    create.add_argument("name", metavar="NAME")
    listing = commands.add_parser("list", help="the volumes there are")
    listing.add_argument("--json", action="store_true", help="print JSON")
    files = commands.add_parser("ls", help="what is in a volume, or in a directory of it")
    files.add_argument("name", metavar="NAME")
    files.add_argument("path", metavar="PATH", nargs="?", default="/")
    files.add_argument("--recursive", "-r", action="store_true", help="at any depth")
    files.add_argument("--json", action="store_true", help="print JSON")
    get = commands.add_parser("get", help="copy a file or directory out of a volume")
    get.add_argument("name", metavar="NAME")
    get.add_argument("path", metavar="PATH")
    get.add_argument("local", metavar="LOCAL", nargs="?", default=".", help="default: here; - is standard output")
    get.add_argument("--force", "-f", action="store_true", help="replace files that are there")
    put = commands.add_parser("put", help="copy a file or directory into a volume")
    put.add_argument("name", metavar="NAME")
    put.add_argument("local", metavar="LOCAL", help="- is standard input")
    put.add_argument("path", metavar="PATH", nargs="?", default="/", help="ends in / where it is a directory")
    put.add_argument("--force", "-f", action="store_true", help="replace files that are there")
    copy = commands.add_parser("cp", help="copy within a volume")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("paths", metavar="PATH", nargs="+", help="one or more, and where they go")
    copy.add_argument("--recursive", "-r", action="store_true", help="directories, too")
    remove = commands.add_parser("rm", help="remove a file or directory from a volume")
    remove.add_argument("name", metavar="NAME")
    remove.add_argument("path", metavar="PATH")
    remove.add_argument("--recursive", "-r", action="store_true", help="a directory, with all that is in it")
    rename = commands.add_parser("rename", help="give a volume another name")
    rename.add_argument("name", metavar="NAME")
    rename.add_argument("new_name", metavar="NEW")
    delete = commands.add_parser("delete", help="delete a volume with all its files, for good")
    delete.add_argument("name", metavar="NAME")
    delete.add_argument("--allow-missing", action="store_true", help="no error where there is none")
    add_yes(delete)


def run(options: argparse.Namespace) -> int:
    from farcall.sdk.volume import Volume

    name: str = options.name if options.command != "list" else ""
    match options.command:
        case "list":
            return _list(as_json=options.json)
        case "create":
            Volume.objects.create(name)
            print(
                f'made volume {name}\nuse it: @app.function(volumes={{"/data": farcall.Volume.from_name("{name}")}})',
                file=sys.stderr,
            )
        case "ls":
            return _ls(Volume.from_name(name), options.path, recursive=options.recursive, as_json=options.json)
        case "get":
            return _get(Volume.from_name(name), options.path, options.local, force=options.force)
        case "put":
            return _put(Volume.from_name(name), options.local, options.path, force=options.force)
        case "cp":
            if len(options.paths) < 2:
                raise UsageError("farcall volume cp needs at least two paths: what to copy, and where")
            Volume.from_name(name).copy_files(options.paths[:-1], options.paths[-1], recursive=options.recursive)
        case "rm":
            Volume.from_name(name).remove_file(options.path, recursive=options.recursive)
        case "rename":
            Volume.rename(name, options.new_name)
        case _:
            return _delete(name, allow_missing=options.allow_missing, yes=options.yes)
    return 0


def _list(*, as_json: bool) -> int:
    import msgspec

    from farcall.cli.listing import local_time, print_json, print_table, utc_time
    from farcall.sdk import client
    from farcall.wire.volumes import ListVolumes, VolumeReport

    answer, _ = client.current().request(ListVolumes)
    found = msgspec.msgpack.decode(answer.body, type=list[VolumeReport])
    reports = [report for report in found if not report.ephemeral]
    if as_json:
        print_json(
            [
                {
                    "name": report.name,
                    "volume_id": report.volume_id,
                    "created_at": utc_time(report.created_at),
                    "updated_at": utc_time(report.updated_at),
                }
                for report in reports
            ]
        )
    elif reports:
        print_table(
            ("NAME", "CREATED", "UPDATED"),
            [(report.name, local_time(report.created_at), local_time(report.updated_at)) for report in reports],
        )
    else:
        print("no volumes; make one with `farcall volume create NAME`", file=sys.stderr)
    return 0


def _ls(volume: Volume, path: str, *, recursive: bool, as_json: bool) -> int:
    from farcall.cli.listing import local_time, print_json, print_table, utc_time
    from farcall.sdk.types import FileEntryType

    entries = volume.listdir(path, recursive=recursive)
    if as_json:
        print_json(
            [
                {
                    "path": entry.path,
                    "type": entry.type.name.lower(),
                    "size": entry.size,
                    "modified_at": utc_time(entry.mtime),
                }
                for entry in entries
            ]
        )
    elif entries:
        rows: list[tuple[str, str, str]] = []
        for entry in entries:
            is_directory = entry.type is FileEntryType.DIRECTORY
            size = "-" if is_directory else f"{entry.size:,}"
            rows.append((size, local_time(entry.mtime), entry.path + ("/" if is_directory else "")))
        print_table(("SIZE", "MODIFIED", "PATH"), rows)
    else:
        print(f"{path} in volume {volume.name} is empty", file=sys.stderr)
    return 0


def _get(volume: Volume, path: str, local: str, *, force: bool) -> int:
    from farcall.sdk.types import FileEntryType

    if local == "-":
        volume.read_file_into_fileobj(path, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return 0
    entries = volume.listdir(path, recursive=True)
    base = PurePosixPath(path.strip("/"))
    is_file = len(entries) == 1 and entries[0].type is FileEntryType.FILE and entries[0].path == str(base)
    target = Path(local)
    if target.is_dir() and base.name:
        target /= base.name
    files: list[tuple[FileEntry, Path]] = []
    for entry in entries:
        place = target if is_file else target / PurePosixPath(entry.path).relative_to(base)
        if entry.type is FileEntryType.DIRECTORY:
            place.mkdir(parents=True, exist_ok=True)
        elif entry.type is FileEntryType.FILE:
            files.append((entry, place))
        else:
            print(f"left out: {entry.path} is a symlink", file=sys.stderr)
    if not is_file:
        target.mkdir(parents=True, exist_ok=True)
    if not force and (there := [place for _, place in files if os.path.lexists(place)]):
        raise errors.FileExistsError(f"{there[0]} is there already; say --force to replace it")
    size = 0
    for entry, place in files:
        size += _get_file(volume, entry.path, place)
    print(f"{len(files)} file{'s' * (len(files) != 1)}, {size:,} bytes, to {target}", file=sys.stderr)
    return 0


def _get_file(volume: Volume, path: str, place: Path) -> int:
    """Copies one file; what is there is whole: the old one until the new one is."""
    made = place.with_name(f".{place.name}.farcall-part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(made, "wb") as file:
            size = volume.read_file_into_fileobj(path, file)
        os.replace(made, place)
    except OSError as error:
        made.unlink(missing_ok=True)
        if isinstance(error, errors.FarcallError):
            raise
        raise errors.ContentError(f"{place} cannot be written: {error.strerror}") from None
    return size


def _put(volume: Volume, local: str, path: str, *, force: bool) -> int:
    into_directory = path.endswith("/")
    with volume.batch_upload(force=force) as batch:
        if local == "-":
            if into_directory:
                raise UsageError("say what standard input is to be named in the volume: a PATH that ends in no /")
            batch.put_file(sys.stdin.buffer, path)
        elif os.path.isdir(local):
            name = os.path.basename(os.path.abspath(local))
            batch.put_directory(local, f"{path}{name}" if into_directory else path)
        else:
            batch.put_file(local, f"{path}{os.path.basename(local)}" if into_directory else path)
    print(f"put {local} into volume {volume.name}", file=sys.stderr)
    return 0


def _delete(name: str, *, allow_missing: bool, yes: bool) -> int:
    from farcall.sdk.volume import Volume

    if not confirm(f"Delete volume {name} with all its files, for good?", yes=yes):
        print("nothing was deleted", file=sys.stderr)
        return 1
    Volume.objects.delete(name, allow_missing=allow_missing)
    print(f"deleted volume {name}", file=sys.stderr)
    return 0
