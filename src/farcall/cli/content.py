"""`farcall content`: what the content store holds, whether it is right, and what can go."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from typing import TYPE_CHECKING

from farcall import settings
from farcall.cli.output import count
from farcall.content import Store
from farcall.content.gc import collect
from farcall.content.verify import verify
from farcall.errors import InvalidError

if TYPE_CHECKING:
    from farcall.content.tiers import WritableTier

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    stat = commands.add_parser("stat", help="how much there is of what")
    check = commands.add_parser("verify", help="read and hash everything; exit code 1 when something was damaged")
    gc = commands.add_parser("gc", help="remove what nothing keeps")
    gc.add_argument(
        "--keep", type=_size, metavar="SIZE", help="drop what was used least recently, too, until SIZE is left (20GB)"
    )
    push = commands.add_parser("push", help="put what was built into the object store, now")
    pull = commands.add_parser("pull", help="fetch an image from the object store")
    pull.add_argument("image", metavar="IMAGE", help="its id: im-...")
    for command in (stat, check, gc, push, pull):
        command.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    store = Store(settings.paths().content)
    if options.command == "stat":
        return _stat(store, as_json=options.json)
    if options.command == "push":
        return _push(store, as_json=options.json)
    if options.command == "pull":
        return _pull(store, options.image, as_json=options.json)
    if options.command == "verify":
        return _verify(store, as_json=options.json)
    return _collect(store, options.keep, as_json=options.json)


def _stat(store: Store, *, as_json: bool) -> int:
    found = store.statistics()
    kinds: dict[str, int] = {}
    for record in store.records():
        kinds[record.kind] = kinds.get(record.kind, 0) + 1
    unshared = _unshared(store)
    if as_json:
        facts = {"path": str(store.root)} | dataclasses.asdict(found) | {"record_kinds": kinds}
        return _print_json(facts | {"unshared": None if unshared is None else unshared[1]})
    rows = [
        ("objects", found.objects, size(found.object_bytes)),
        ("trees", found.trees, f"{size(found.tree_bytes)}{_partial(found.partial_trees)}"),
        ("records", found.records, ", ".join(f"{number:,} {kind}" for kind, number in sorted(kinds.items()))),
        ("leases", found.leases, "held by what runs, or not yet swept up"),
        ("quarantined", found.quarantined, "removed by `farcall content gc`" if found.quarantined else ""),
    ]
    if unshared is not None:
        rows.append(("unshared", unshared[1], f"records that {unshared[0]} does not have yet"))
    print(store.root)
    for name, number, note in rows:
        print(f"{name:12} {number:>10,}  {note}".rstrip())
    return 0


def _partial(number: int) -> str:
    return f"; {number:,} of them partial: some of their files are fetched when they are needed" if number else ""


def _unshared(store: Store) -> tuple[str, int] | None:
    """What the object store is called, and how many records are not there yet; None where none is set."""
    chosen = settings.load()
    if not chosen.object_store:
        return None
    from farcall.builder.pushing import waiting

    tier = _tier(chosen)
    return tier.title, len(waiting(store, tier))


def _tier(chosen: settings.Settings) -> WritableTier:
    if not chosen.object_store:
        raise InvalidError('no object store is set: object_store = "s3://bucket/prefix" (see docs/guide/settings.md)')
    from farcall.content.tiers.places import open_place

    return open_place(chosen.object_store, chosen.object_store_endpoint)


def _push(store: Store, *, as_json: bool) -> int:
    from farcall.builder.pushing import push

    tier = _tier(settings.load())
    pushed = push(store, tier, (lambda text: None) if as_json else print)
    if as_json:
        return _print_json({"object_store": tier.title, "records": pushed})
    print(f"{count(pushed, 'record')} pushed: {tier.title} has all that was built here")
    return 0


def _pull(store: Store, image_id: str, *, as_json: bool) -> int:
    from farcall.builder.pushing import pull

    tier = _tier(settings.load())
    fetched = pull(store, tier, image_id)
    if as_json:
        return _print_json({"image": image_id} | dataclasses.asdict(fetched))
    print(
        f"{image_id} is here: {count(fetched.objects, 'object')} ({size(fetched.object_bytes)}) fetched in "
        f"{size(fetched.received_bytes)}"
    )
    return 0


def _verify(store: Store, *, as_json: bool) -> int:
    found = verify(store)
    if as_json:
        _print_json(dataclasses.asdict(found) | {"damaged": [damage._asdict() for damage in found.damaged]})
        return 1 if found.damaged else 0
    for damage in found.damaged:
        print(f"{damage.kind} {damage.name}: {damage.reason}")
    print(f"{count(found.objects, 'object')} ({size(found.object_bytes)}) and {count(found.trees, 'tree')} are right")
    if found.damaged:
        print(
            f"{count(len(found.damaged), 'thing')} was out of order and is out of use now; images and source are built "
            f"or read again when they are next asked for. What was damaged is in {store.root / 'quarantine'} until the "
            "next `farcall content gc`",
            file=sys.stderr,
        )
        return 1
    return 0


def _collect(store: Store, keep_bytes: int | None, *, as_json: bool) -> int:
    done = collect(store, keep_bytes)
    if as_json:
        return _print_json(dataclasses.asdict(done))
    dropped = f"{count(done.records, 'record')} dropped, " if keep_bytes is not None else ""
    print(
        f"{dropped}{count(done.trees, 'tree')} and {count(done.objects, 'object')} removed, {size(done.freed_bytes)} "
        f"freed; {size(done.kept_bytes)} stay"
    )
    if done.stuck:
        print(
            f"{count(done.stuck, 'directory').replace('directorys', 'directories')} belong to containers' users and "
            "are left to the server, which removes them when it next collects",
            file=sys.stderr,
        )
    return 0


def _print_json(value: object) -> int:
    import json

    print(json.dumps(value, indent=2))
    return 0


def size(number: int) -> str:
    """Bytes for people: "512 B", "1.5 GB"."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: a number and K, M, G, T, or Ki, Mi, Gi, Ti, as in 20GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])
