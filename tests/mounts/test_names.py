"""What the paths of a tree say about who opens what."""

import pytest

from farcall.content import Entry
from farcall.mounts.lazy.names import Names, group_of

SITE = b"usr/lib/python3/dist-packages"


def file(path: bytes) -> Entry:
    return Entry(path, 0o100644, size=1, digest=path)


def link(path: bytes, target: bytes) -> Entry:
    return Entry(path, 0o120777, target=target)


@pytest.mark.parametrize(
    ("path", "group"),
    [
        (b"usr/local/lib/python3.11/dist-packages/torch/nn/__pycache__/a.cpython-311.pyc", b"torch.pyc"),
        (b"opt/v/lib/python3.13/site-packages/torch/nn/a.py", b"torch.py"),
        (b"usr/lib/python3.11/json/__pycache__/decoder.cpython-311.pyc", b"usr/lib/python3.11.pyc"),
        (b"opt/v/lib/python3.13/site-packages/a-1.dist-info/entry_points.txt", b"site-packages/entry_points.txt"),
        (b"opt/v/lib/python3.13/site-packages/torch/lib/libc10.so", None),
        (b"etc/passwd", None),
        (b"srv/app/main.py", None),
    ],
)
def test_what_is_opened_together(path: bytes, group: bytes | None) -> None:
    found = group_of(path)
    assert found is None if group is None else found is not None and found.endswith(group)


def test_libraries_are_found_by_their_links_too() -> None:
    names = Names.of(
        [
            file(b"usr/lib/x/libz.so.1.2.13"),
            link(b"usr/lib/x/libz.so.1", b"libz.so.1.2.13"),
            link(b"usr/lib/libz.so", b"/usr/lib/x/libz.so.1.2.13"),
            link(b"usr/lib/x/libgone.so.1", b"../../../../../libgone.so.1.0"),
            file(b"opt/libz.so.1"),
        ]
    )
    assert {entry.path for entry in names.libraries[b"libz.so.1"]} == {b"usr/lib/x/libz.so.1.2.13", b"opt/libz.so.1"}
    assert [entry.path for entry in names.libraries[b"libz.so"]] == [b"usr/lib/x/libz.so.1.2.13"]
    assert b"libgone.so.1" not in names.libraries


def test_packages_and_what_each_start_opens() -> None:
    names = Names.of(
        [
            file(b"etc/passwd"),
            file(b"etc/motd"),
            file(b"usr/bin/python3.11"),
            link(b"usr/bin/python3", b"python3.11"),
            file(b"usr/lib/python3.11/__pycache__/os.cpython-311.pyc"),
            file(SITE + b"/p/_c.cpython-311-x86_64-linux-gnu.so"),
            file(SITE + b"/p/lib/libq.so"),
            file(SITE + b"/p/__pycache__/a.cpython-311.pyc"),
            Entry(SITE + b"/p/__pycache__/empty.cpython-311.pyc", 0o100644),
            file(SITE + b"/q.pth"),
        ]
    )
    assert set(names.starts) == {b"etc/passwd", SITE + b"/q.pth"}
    [interpreter] = names.interpreters
    assert interpreter.path == b"usr/bin/python3.11"
    assert list(names.standard_library(interpreter)) == [b"usr/lib/python3.11/__pycache__/os.cpython-311.pyc"]
    assert names.groups[SITE + b"/p.pyc"] == (SITE + b"/p/__pycache__/a.cpython-311.pyc",)
    assert [entry.name for entry in names.extensions[SITE + b"/p"]] == [b"_c.cpython-311-x86_64-linux-gnu.so"]
