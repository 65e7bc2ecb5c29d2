"""`farcall image`: the images of this machine, and their way from and to elsewhere."""

import argparse
import sys
import time
from pathlib import Path

from farcall import settings
from farcall.builder.images import Images, Listed, split_name
from farcall.cli.content import size
from farcall.cli.listing import utc_time
from farcall.cli.output import Renderer
from farcall.content import Store
from farcall.errors import NotFoundError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    listing = commands.add_parser("list", help="the images that are here")
    listing.add_argument("--json", action="store_true", help="print JSON")
    pull = commands.add_parser("pull", help="fetch an image from a registry, or what has changed of it")
    pull.add_argument("reference", metavar="REFERENCE", help="its name there: python:3.12-slim, ghcr.io/owner/name:1.0")
    pull.add_argument("--name", help='what to call it here: "name" or "name:tag"')
    pull.add_argument("--add-python", metavar="VERSION", help="add this Python, for an image that has none")
    export = commands.add_parser("export", help="write an image to an OCI archive, for skopeo and podman")
    export.add_argument("image", metavar="IMAGE", help="its name, or its id")
    export.add_argument("file", metavar="FILE", type=Path, help="the tar file to write")
    taking = commands.add_parser("import", help="take in an image from an OCI archive, or from what docker saves")
    taking.add_argument("file", metavar="FILE", type=Path, help="a tar file, or the folder of an OCI layout")
    taking.add_argument("--name", required=True, help='what to call it here: "name" or "name:tag"')
    taking.add_argument("--image", default="", help="which one of several in the archive: its name or tag there")
    remove = commands.add_parser("rm", help="forget images by their ids, or names of images")
    remove.add_argument("images", metavar="IMAGE", nargs="+", help="an id, or a name")


def run(options: argparse.Namespace) -> int:
    if options.command == "pull":
        return _pull(options.reference, options.name, options.add_python)
    store = Store(settings.paths().content)
    match options.command:
        case "list":
            return _list(store, as_json=options.json)
        case "export":
            return _export(store, options.image, options.file)
        case "import":
            return _import(store, options.file, options.name, options.image)
        case _:
            return _remove(store, options.images)


def _list(store: Store, *, as_json: bool) -> int:
    listed: list[tuple[Listed, int]] = []
    for one in reversed(Images(store).all()):
        try:
            listed.append((one, store.tree(one.image.tree).size))
        except NotFoundError:
            continue  # collected meanwhile
    if as_json:
        import json

        print(
            json.dumps(
                [
                    {
                        "id": one.image.image_id,
                        "names": one.names,
                        "python": one.image.python.version if one.image.python else None,
                        "bytes": there,
                        "used_at": utc_time(one.used),
                    }
                    for one, there in listed
                ],
                indent=2,
            )
        )
        return 0
    if not listed:
        print("no image is here", file=sys.stderr)
    for one, there in listed:
        image = one.image
        python = f"Python {image.python.version}" if image.python else "no Python" if image.probed else ""
        print(f"{image.image_id}  {size(there):>7}  {python:14}  {_ago(one.used):>11}  {', '.join(one.names)}".rstrip())
    return 0


def _pull(reference: str, name: str | None, add_python: str | None) -> int:
    from farcall.sdk import builds, output
    from farcall.sdk.image import Image

    if name is not None:
        split_name(name)  # what is wrong with it is said before the work
    renderer = Renderer(sys.stdout, sys.stderr)
    before, output.listener = output.listener, renderer
    try:
        image = builds.build(Image.from_registry(reference, add_python=add_python, force_build=True))
    finally:
        output.listener = before
        renderer.finish()
    assert image.object_id is not None
    if name is not None:
        builds.publish(Image.from_id(image.object_id), name)
    print(f"{image.object_id}  {':'.join(split_name(name))}" if name is not None else image.object_id)
    return 0


def _export(store: Store, reference: str, file: Path) -> int:
    from farcall.builder.oci.export import export_archive

    image = Images(store).get(reference)
    with store.lease("export") as lease:
        lease.keep_tree(image.tree)
        name = "" if reference == image.image_id else reference
        digest = export_archive(store, image.tree, image.config, file, name=name)
    print(f"{file}: {size(file.stat().st_size)}, {digest}")
    return 0


def _import(store: Store, file: Path, name: str, which: str) -> int:
    from farcall.builder.oci.archive import import_archive
    from farcall.spec.image import split_name

    split_name(name)  # what is wrong with it is said before the work
    images = Images(store)
    with store.lease("import") as lease:
        imported = import_archive(lease, file, name=which)
        image = images.add(imported.tree_id, imported.config)
        images.publish(image.image_id, name)
        there = store.tree(image.tree).size
    print(f"{image.image_id}  {':'.join(split_name(name))}: {size(there)}, {imported.digest}")
    return 0


def _remove(store: Store, references: list[str]) -> int:
    images = Images(store)
    for reference in references:
        images.get(reference)  # one that is not there is said before any is gone
    for reference in references:
        images.remove(reference)
        print(f"{reference} is forgotten")
    return 0


def _ago(when: float) -> str:
    """A time for people: "5 min ago"."""
    seconds = max(0.0, time.time() - when)
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"
