"""What a measurement puts on disk, and whether there is room for it where it goes."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from lite_probe.errors import OutputError


def require_room(needs: Iterable[tuple[Path, int]]) -> None:
    """Refuse what would fill a file system before it is half done.

    Folders of one file system share its room.

    Args:
        needs: (folder, bytes) pairs, of what is not there yet; nor need the folder be.

    Raises:
        OutputError: If a file system has less room than its folders need.
    """
    by_system: dict[int, list[tuple[Path, int]]] = {}
    for folder, size in needs:
        existing = _existing(folder)
        by_system.setdefault(existing.stat().st_dev, []).append((folder, size))
    for shared in by_system.values():
        needed = sum(size for _, size in shared)
        free = shutil.disk_usage(_existing(shared[0][0])).free
        if needed > free:
            places = " and ".join(dict.fromkeys(str(folder) for folder, size in shared if size))
            raise OutputError(
                f"expected {disk_size(needed)} of free disk in {places}, got {disk_size(free)}",
                "free some space, or put the working files on another disk with --scratch DIR",
            )


def held_bytes(folder: Path) -> int:
    """Return the bytes of the files in a folder, one of two names once."""
    found = (path.lstat() for path in folder.rglob("*") if not path.is_dir())
    return sum({(status.st_dev, status.st_ino): status.st_size for status in found}.values())


def disk_size(size: int) -> str:
    """Return bytes for people, in the unit that disks are sold in."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= 0.05 * scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
