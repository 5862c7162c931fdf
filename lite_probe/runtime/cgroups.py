"""What the control groups of this process leave it: the memory of a container, which the host's figures do not show."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class _Files:
    """How a version of control groups names its files.

    Attributes:
        limit: Bytes that a group may take; `max` where it may take any.
        usage: Bytes that it takes, files that the system has cached for it included.
        cached: Of `memory.stat`, those of them that the system gives back when they are asked for.
    """

    limit: str
    usage: str
    cached: tuple[str, ...]


_FIRST = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_SECOND = _Files("memory.max", "memory.current", ("inactive_file", "active_file"))


def room_in_groups(membership: Path = _MEMBERSHIP, mount: Path = _MOUNT) -> int | None:
    """Return the bytes that the groups of this process, and those above them, let it take beside what they hold.

    What cannot be read is no limit: another system, a group that the container does not see.

    Args:
        membership: Says which groups they are.
        mount: Where groups are.

    Returns:
        The least of all groups; None where none has a limit.
    """
    rooms = (_room(group, files) for group, files in _groups(membership, mount))
    return min((room for room in rooms if room is not None), default=None)


def _groups(membership: Path, mount: Path) -> Iterator[tuple[Path, _Files]]:
    """Yield the folders of the groups that count memory, each with those above it, of either version."""
    try:
        lines = membership.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, files = mount, _SECOND
        elif "memory" in controllers.split(","):
            top, files = mount / "memory", _FIRST
        else:
            continue
        own = top / path.strip("/")
        yield from ((group, files) for group in (own, *own.parents) if group.is_relative_to(top))


def _room(group: Path, files: _Files) -> int | None:
    """Return the bytes that one group leaves; None where it has no limit."""
    try:
        limit, usage = (int((group / name).read_text()) for name in (files.limit, files.usage))
        counted = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
        return max(limit - usage + sum(int(counted[name]) for name in files.cached), 0)
    except (OSError, ValueError, KeyError):
        return None
