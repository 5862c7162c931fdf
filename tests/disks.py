"""What lies on a disk, and disks that have only so much room."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

_Usage = namedtuple("_Usage", "total used free")


def held(folder: Path) -> int:
    """Bytes of all files in a folder; one of two names is there once."""
    return sum({path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}.values())


def taken(folder: Path) -> int:
    """Bytes that a folder's files take on the disk: those that have no name any more, but are mapped, too."""
    sizes = {path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *name = line.split(maxsplit=5)
        if name and name[0].startswith(f"{folder}/"):
            first, last = (int(address, 16) for address in span.split("-"))
            sizes.setdefault(int(inode), last - first)
    return sum(sizes.values())


def leave_room(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Let every disk have this much room."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10**9, 0, num_bytes))
