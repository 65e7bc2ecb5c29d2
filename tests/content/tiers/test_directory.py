"""A directory as a tier: what is put there outlives a power cut."""

import os
from pathlib import Path

import pytest

from farcall.content.tiers.directory import DirectoryTier


def test_a_blob_and_its_name_are_on_the_disk_when_put_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def synced(fd: int) -> None:
        fsync(fd)
        steps.append(("on the disk", os.readlink(f"/proc/self/fd/{fd}")))

    def renamed(old: Path, new: Path) -> None:
        rename(old, new)
        steps.append(("renamed from", str(old)))
        assert new == tmp_path / "packs" / "ab"

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    tier = DirectoryTier(tmp_path)
    tier.put("packs/ab", b"content")

    [(_, made), *_] = steps
    assert steps == [("on the disk", made), ("renamed from", made), ("on the disk", str(tmp_path / "packs"))]
    assert tier.get("packs/ab") == b"content"
